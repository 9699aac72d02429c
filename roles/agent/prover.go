package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// prover has a new generation prove itself: the local health gate, the compliance gate, and
// one answer of the control plane.
type prover struct {
	cfg      *Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	undoer   *undo.Undoer
	status   *statusFile
	reporter *reporter
	client   *client.Client
	contact  *contact
	prober   *prober
	settler  *settler
}

// check is the local health gate and one answered check-in. Only the target's
// own agent may pass it.
func (p *prover) check(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	if ok, err := p.mayProve(ctx, j); err != nil || !ok {
		if err == nil {
			p.status.waiting("the new generation's own agent to prove it; this is another agent")
		}
		return nil, err
	}
	if current, err := p.host.CurrentSystem(ctx); err != nil {
		return nil, err
	} else if !p.undoer.Runs(ctx, current, j.Closure) {
		return nil, p.settler.undo(ctx, journal.Because(protocol.CauseSwitch, current+" runs after the switch"))
	}
	if !j.GatePassed {
		var err error
		if j, err = p.watch(ctx, j); j == nil || err != nil {
			return nil, err
		}
	}
	if reason, err := p.awaitBlessing(ctx, j); err != nil {
		return nil, err
	} else if reason != nil {
		return nil, p.settler.undo(ctx, *reason)
	}
	p.status.waiting("an answer of the control plane, which proves that %s reaches it", j.Closure)
	for {
		if err := p.reach(ctx, j); err == nil {
			break
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		} else if p.windowUsed(ctx, j) {
			return nil, p.settler.undo(ctx, undo.Unreachable)
		}
		if err := nixops.Sleep(ctx, floorPause); err != nil {
			return nil, err
		}
	}
	return p.dir.Advance(time.Now(), []journal.Step{journal.Checking}, journal.Proven, nil)
}

// watch is the local health gate, once the boot is over. It returns the journal that says that the gate was passed, or
// nil after an undo.
func (p *prover) watch(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	if err := p.awaitBoot(ctx, j); err != nil {
		return nil, err
	}
	p.status.waiting("watching %s for %s", j.Closure, p.cfg.SettleTime)
	trouble, err := p.gate(ctx, j)
	if err != nil {
		return nil, err
	}
	if trouble != "" {
		return nil, p.settler.undo(ctx, journal.Because(protocol.CauseHealthGate, trouble))
	}
	if trouble = p.comply(ctx, j); trouble != "" {
		return nil, p.settler.undo(ctx, journal.Because(protocol.CauseCompliance, trouble))
	}
	return p.dir.Advance(time.Now(), []journal.Step{journal.Checking}, journal.Checking,
		func(j *journal.Journal) { j.GatePassed = true })
}

// reach gets one authenticated answer. A control plane without heads would take a check-in
// that names the new generation for a confirm, and is asked who this host is instead; one
// that does not know the question has answered all the same, since it looks at the
// certificate first (contracts/wire.md section 1).
func (p *prover) reach(ctx context.Context, j *journal.Journal) error {
	if !j.ByManifest() {
		_, _, err := p.contact.checkin(ctx, 0)
		return err
	}
	_, err := p.client.Whoami(ctx)
	if refused := (*client.Error)(nil); errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// mayProve reports whether this process is the target closure's own agent.
func (p *prover) mayProve(ctx context.Context, j *journal.Journal) (bool, error) {
	if p.cfg.AgentOutside {
		return true, nil
	}
	c, err := p.host.Inspect(ctx, j.Closure)
	if err != nil {
		return false, err
	}
	own, err := os.Executable()
	if err == nil {
		own, err = filepath.EvalSymlinks(own)
	}
	return own == c.AgentPath, err
}

// windowUsed reports whether so much of the window is over that the agent undoes by itself. The clock may
// have been set meanwhile: when it says that even the deadline has passed, which is
// monotonic and still to come, the deadline is believed.
func (p *prover) windowUsed(ctx context.Context, j *journal.Journal) bool {
	used, window := time.Since(j.StartedAt.Time), time.Duration(j.WindowSecs)*time.Second
	if used > window {
		armed, err := p.host.DeadlineArmed(ctx, j.Units.Deadline)
		return err != nil || !armed
	}
	return used > window-window/answerMargin
}

// gate watches units through the settle time, and on until the probes allow the new
// generation. It returns what is wrong with it, empty when nothing is.
func (p *prover) gate(ctx context.Context, j *journal.Journal) (string, error) {
	before := j.Baseline()
	watch := before.Watch(time.Now())
	for settled := time.Now().Add(p.cfg.SettleTime); ; {
		watched := !time.Now().Before(settled)
		units, err := p.host.Units(ctx)
		if err != nil {
			return "", err
		}
		trouble := before.Failing(units)
		if !watched {
			trouble = watch.Look(units, time.Now())
		}
		if trouble != "" {
			return trouble, nil
		}
		if watched {
			failing := p.prober.failing()
			if len(failing) == 0 {
				return "", nil
			}
			if p.windowUsed(ctx, j) {
				return fmt.Sprintf("probes: %v", failing), nil
			}
			p.status.waiting("probes %v", failing)
		}
		pause := gatePoll
		if left := time.Until(settled); left > 0 {
			pause = min(pause, left+time.Millisecond)
		}
		if err := nixops.Sleep(ctx, pause); err != nil {
			return "", err
		}
	}
}
