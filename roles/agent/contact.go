package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// contact says what this host runs, at every check-in.
type contact struct {
	cfg      *Config
	host     nixops.Host
	dir      journal.Directory
	undoer   *undo.Undoer
	clock    *clock
	status   *statusFile
	work     *work
	memory   *memory
	prober   *prober
	identity *identity
	client   *client.Client
	reboots  rebootPolicy
	boots    *bootWatch

	fetch   atomic.Pointer[protocol.FetchOutcome]
	brevity atomic.Int32 // how much a check-in leaves out
}

// checkin says what this host runs. With hold above zero the control plane may
// hold the answer; a local change then gives the request up. sent is when the
// request left, from which a lease counts.
func (c *contact) checkin(ctx context.Context, hold time.Duration) (answer *protocol.CheckinResponse, sent time.Time,
	err error) {
	req, err := c.facts(ctx)
	if err != nil {
		return nil, sent, fmt.Errorf("read the host's state: %w", err)
	}
	sent = time.Now()
	if hold == 0 {
		answer, err = c.client.Checkin(ctx, req, 0)
		return answer, sent, err
	}
	held, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		answer, err = c.client.Checkin(held, req, hold)
		close(done)
	}()
	select {
	case <-done:
		return answer, sent, err
	case <-c.work.changed:
		cancel(errLocalChange)
		<-done
		if err != nil && ctx.Err() == nil {
			err = errLocalChange
		}
		return answer, sent, err
	}
}

// facts is what a check-in says.
func (c *contact) facts(ctx context.Context) (*protocol.CheckinRequest, error) {
	current, err := c.host.CurrentSystem(ctx)
	if err != nil {
		return nil, err
	}
	if c.unproven(ctx, current) {
		return nil, errUnproven
	}
	boot, err := c.host.BootID(ctx)
	if err != nil {
		return nil, err
	}
	uptime := uint64(time.Since(c.clock.started) / time.Second)
	req := &protocol.CheckinRequest{
		Hostname: c.cfg.MachineID, AgentVersion: c.cfg.Version, UptimeSecs: &uptime,
		CurrentGeneration: protocol.Generation{BootID: boot},
		LastFetchOutcome:  c.fetch.Load(), HealthProbes: []protocol.ProbeResult{},
	}
	var sp specialised
	req.CurrentGeneration.ClosureHash = c.base(ctx, current, &sp)
	if sp.name != "" {
		req.Specialisation = &sp.name
	}
	if c.prober.active() {
		mode := c.prober.mode
		req.HealthCheckMode, req.HealthProbes = &mode, c.prober.snapshot()
	}
	if last := c.memory.confirmed.Load(); last != nil && last.Closure == req.CurrentGeneration.ClosureHash &&
		!last.At.After(c.clock.now()) {
		req.LastEvaluatedTarget = last.target()
		at := last.attested()
		req.LastConfirmedAt = &at
		if c.identity.host != nil {
			sig, err := protocol.SignAttestation(c.identity.host, c.cfg.MachineID, at, last.RolloutID)
			if err != nil {
				return nil, err
			}
			req.AttestationSignature = &sig
		}
	}
	c.memory.respect(ctx, req.CurrentGeneration.ClosureHash)
	if held := c.memory.heldText(); held != "" {
		req.Held = &held
	}
	pending := c.rebootFacts(ctx, req)
	req.Boot = c.bootFacts(ctx, req.CurrentGeneration.ClosureHash, boot)
	req.CannotBegin = c.memory.unbegun.Load()
	nextBoot := bootSentence(req.Boot)
	if req.Phase, err = c.phase(); err != nil {
		return nil, err
	}
	shorten(req, int(c.brevity.Load()))
	c.status.note(func(s *status) {
		s.Running, s.Phase = req.CurrentGeneration.ClosureHash, req.Phase.Name
		s.Specialisation, s.RebootPending, s.Held = sp.name, pending, text(req.Held)
		s.NextBoot = nextBoot
	})
	return req, nil
}

// errUnproven means that a check-in would name a generation that is not proven to a control
// plane that takes a check-in for a confirm.
var errUnproven = errors.New("no check-in under a v1 control plane before the generation is proven")

// provenTime is how long a committed generation may wait for its confirm to be tried before
// a check-in names it.
const provenTime = time.Minute

// unproven reports whether current is the target of an activation under a control plane
// without heads that is not confirmed yet. To such a control plane a check-in that names the
// target is a confirm [T26]. A generation whose confirm is not answered is proven, and named
// after a while.
func (c *contact) unproven(ctx context.Context, current string) bool {
	j, err := c.dir.Journal()
	if err != nil || j == nil || !j.ByManifest() || !c.undoer.Runs(ctx, current, j.Closure) {
		return false
	}
	return j.Step != journal.Committed || time.Since(j.Since.Time) < provenTime
}

// briefest is how often a check-in may be called too large and still say less.
const briefest = 2

// shorten leaves out what a check-in can do without, after one was called too large.
func shorten(req *protocol.CheckinRequest, much int) {
	if much == 0 {
		return
	}
	if f := req.LastFetchOutcome; f != nil {
		req.LastFetchOutcome = &protocol.FetchOutcome{Result: f.Result, RolloutID: f.RolloutID, Dispatch: f.Dispatch}
	}
	req.Held, req.Specialisation = clipped(req.Held, maxHeldBrief), nil
	for i := range req.HealthProbes {
		req.HealthProbes[i].FailureReason = nil
	}
	if much == briefest {
		req.HealthProbes, req.HealthCheckMode, req.RebootPending = []protocol.ProbeResult{}, nil, nil
		req.Boot, req.CannotBegin = nil, nil
	}
}

// maxHeldBrief is what a short check-in says of a hold, in bytes.
const maxHeldBrief = 60

func clipped(s *string, limit int) *string {
	if s == nil {
		return nil
	}
	short := protocol.Clip(*s, limit)
	return &short
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// specialised is the specialisation that runs, empty when none does.
type specialised struct{ name string }

// base is the closure that the running system belongs to: a running
// specialisation of what this host should run counts as that.
func (c *contact) base(ctx context.Context, current string, sp *specialised) string {
	candidates := []string{}
	if last := c.memory.confirmed.Load(); last != nil {
		candidates = append(candidates, last.Closure)
	}
	if profile, err := c.host.Profile(ctx); err == nil {
		candidates = append(candidates, profile)
	}
	for _, candidate := range candidates {
		if candidate == current || candidate == "" {
			continue
		}
		closure, err := c.host.Inspect(ctx, candidate)
		if err != nil {
			continue
		}
		for _, s := range closure.Specialisations {
			if s == current {
				sp.name = current
				return candidate
			}
		}
	}
	return current
}

// rebootFacts says what waits for a boot, and gives it in words for people here.
func (c *contact) rebootFacts(ctx context.Context, req *protocol.CheckinRequest) string {
	if j, err := c.dir.Journal(); err == nil && j != nil && j.Step == journal.Staged {
		req.PendingGeneration = &protocol.PendingGeneration{ClosureHash: j.Closure}
		req.RebootPending = &j.Component
		if !j.BootsOnce {
			return j.Component + "; " + noFallback
		}
		return j.Component + "; " + c.reboots.String()
	}
	booted, err := c.host.BootedSystem(ctx)
	if err != nil || booted == "" || booted == req.CurrentGeneration.ClosureHash {
		return ""
	}
	running, err := c.host.Inspect(ctx, req.CurrentGeneration.ClosureHash)
	if err != nil {
		return ""
	}
	was, err := c.host.Inspect(ctx, booted)
	if err != nil {
		return ""
	}
	if parts := running.NeedsReboot(was); len(parts) > 0 {
		req.RebootPending = &parts[0]
	}
	return text(req.RebootPending)
}

// phases are the wire's words for the journal's steps.
var phases = map[journal.Step]string{
	journal.Fetching: protocol.PhaseFetching, journal.Arming: protocol.PhaseActivating,
	journal.Switching: protocol.PhaseActivating,
	journal.Checking:  protocol.PhaseChecking, journal.Proven: protocol.PhaseCommitting,
	journal.Committing: protocol.PhaseCommitting,
	journal.Committed:  protocol.PhaseCommitting, journal.Staging: protocol.PhaseActivating,
	journal.Staged:  protocol.PhaseStaged,
	journal.Undoing: protocol.PhaseUndoing, journal.Undone: protocol.PhaseUndoing,
}

func (c *contact) phase() (*protocol.Phase, error) {
	j, err := c.dir.Journal()
	if err != nil {
		return nil, err
	}
	if j == nil {
		return &protocol.Phase{Name: protocol.PhaseIdle}, nil
	}
	since := pki.At(j.Since.Time)
	return &protocol.Phase{Name: phases[j.Step], Intent: j.Intent, ClosureHash: j.Closure, Since: &since,
		Attempt: j.Attempt, Dispatch: c.memory.reporter.given.of(j.ChannelRef)}, nil
}
