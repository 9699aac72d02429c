package agent

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// root types a command on the machine's own shell.
func (m *machine) root(args ...string) (string, error) {
	m.t.Helper()
	var out bytes.Buffer
	app := command.App("test", Command())
	app.Writer, app.ErrWriter = &out, &bytes.Buffer{}
	line := []string{"nixfleet", "agent", args[0], "--state-dir", m.path("state"), "--simulated-host", m.path("machine"),
		"--simulated-cache", m.dir + "/cache"}
	err := app.Run(append(line, args[1:]...))
	return out.String(), err
}

// types is root, and the command works.
func (m *machine) types(args ...string) string {
	m.t.Helper()
	out, err := m.root(args...)
	if err != nil {
		m.t.Errorf("agent %v: %v", args, err)
	}
	return out
}

// acts are the details of the reports of what root did.
func (p *plane) acts() string { return p.refusals(protocol.EventOther) }

func TestPauseAndResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		p.noTarget = true
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		m.types("pause", "--reason", "disk is being replaced")
		p.set(func() { p.noTarget = false })
		time.Sleep(30 * time.Minute)
		if m.where() != all(before) || p.seen().Held == nil || *p.seen().Held != "paused: disk is being replaced" {
			t.Errorf("paused: at %v, check-in says %v", m.where(), p.seen().Held)
		}
		if !strings.Contains(p.acts(), "paused: disk is being replaced") {
			t.Errorf("reported %s", p.acts())
		}
		if out := m.types("status"); !strings.Contains(out, "paused: disk is being replaced") ||
			!strings.Contains(out, "nixfleet agent resume") {
			t.Errorf("status says %s", out)
		}
		// Also for the agent that comes after this one, and for a new intent.
		stop()
		p.release(another, time.Now())
		stop = m.start(m.sim)
		time.Sleep(30 * time.Minute)
		if m.where() != all(before) {
			t.Errorf("paused, after a restart: at %v", m.where())
		}
		m.types("resume")
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(another) || p.seen().Held != nil || !strings.Contains(p.acts(), "resumed") {
			t.Errorf("resumed: at %v, check-in says %v, reported %s", m.where(), p.seen().Held, p.acts())
		}
	})
}

// A pause in the middle of an activation leaves its deadline running.
func TestPauseNeverStopsADeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		for range 600 {
			if m.where()[0] == target {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		p.set(func() { p.away = true })
		if out := m.types("pause", "--reason", "looks odd"); !strings.Contains(out, "deadline") {
			t.Errorf("said %q", out)
		}
		stop() // not even an agent is left
		time.Sleep(10 * time.Minute)
		if m.where() != all(before) {
			t.Errorf("after the deadline: %v", m.where())
		}
		p.set(func() { p.away = false })
		stop = m.start(m.sim)
		time.Sleep(30 * time.Minute)
		stop()
		if m.where() != all(before) {
			t.Errorf("still paused: %v", m.where())
		}
	})
}

func TestActivateHoldsUntilANewIntent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		m.must(m.sim.Realise(context.Background(), another, nil))
		m.types("activate", "--reason", "try the fix", "/nix/store/"+another+"/")
		// A control plane that gives a held host no target must not keep it held.
		p.set(func() { p.tamper = func(r *protocol.CheckinResponse) { r.Target = nil } })
		time.Sleep(30 * time.Minute)
		if m.where() != all(another) || p.seen().Held == nil || *p.seen().Held != "activated "+another+": try the fix" {
			t.Errorf("held: at %v, check-in says %v", m.where(), p.seen().Held)
		}
		if !strings.Contains(p.acts(), "activated "+another) {
			t.Errorf("reported %s", p.acts())
		}
		// Signed anew it is the same intent.
		p.release(target, time.Now())
		time.Sleep(30 * time.Minute)
		if p.seen().Held == nil {
			t.Error("the hold ended with a new signature")
		}
		p.release(before, time.Now())
		time.Sleep(time.Minute)
		if p.seen().Held != nil || !strings.Contains(p.acts(), "a new release ended the hold") {
			t.Errorf("a new intent: check-in says %v, reported %s", p.seen().Held, p.acts())
		}
		p.set(func() { p.tamper = nil })
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(before) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

func TestActivateRefusesWhatIsNoSystem(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.noTarget = true
		closures := with(sim.Closure{NoSwitch: true})
		closures[another] = sim.Closure{Script: sim.Script{ExitCode: 101}}
		m := newMachine(t, p, closures)
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		m.must(m.sim.Realise(context.Background(), target, nil))
		for _, args := range [][]string{
			{}, {"x"}, {"../../etc"}, {"/etc/passwd"}, {target, another}, {another}, {target},
			{"/nix/store/" + another + "/bin/sh"},
		} {
			if out, err := m.root(append([]string{"activate"}, args...)...); err == nil {
				t.Errorf("activate %v: %s", args, out)
			}
		}
		// A switch that dies leaves no hold, and is recorded.
		m.must(m.sim.Realise(context.Background(), another, nil))
		if _, err := m.root("activate", another); err == nil || !strings.Contains(err.Error(), "exit 101") {
			t.Errorf("a script that dies: %v", err)
		}
		time.Sleep(time.Minute)
		stop()
		if _, err := os.Stat(m.path("state/" + journal.HoldFile)); !strings.Contains(p.acts(), "failed") || err == nil &&
			!strings.Contains(p.acts(), protocol.KindThirdClosure) {
			t.Errorf("hold %v, reported %s", err, p.acts())
		}
	})
}

// Root's rollback goes to the recorded path, and no further when repeated.
func TestRollbackByRoot_A6(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		if _, err := m.root("rollback"); err == nil {
			t.Error("rolled back to nothing")
		}
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		for range 3 {
			m.types("rollback", "--reason", "printing is broken")
			time.Sleep(10 * time.Minute)
			if m.where() != all(before) {
				t.Errorf("at %v", m.where())
			}
		}
		m.types("resume")
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("resumed: at %v", m.where())
		}
	})
}

// Nothing is begun while root switches, and root does not switch into an activation.
func TestRootAndAgentExcludeEachOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.Realise(context.Background(), another, nil))
		stop := m.start(m.sim)
		for range 600 {
			if m.where()[0] == target {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		hint := (*command.Error)(nil)
		if _, err := m.root("activate", another); !errors.As(err, &hint) || !strings.Contains(hint.Hint, "undo") {
			t.Errorf("in the middle of an activation: %v", err)
		}
		m.types("undo", "--reason", "the site is down")
		time.Sleep(5 * time.Second)
		if m.where() != all(before) {
			t.Errorf("undone: %v", m.where())
		}
		m.types("activate", another)
		time.Sleep(30 * time.Minute)
		stop()
		if m.where() != all(another) || p.reported(protocol.EventClosureQuarantined) {
			t.Errorf("ended at %v", m.where())
		}
		if out := m.types("undo"); !strings.Contains(out, "nothing to undo") {
			t.Errorf("said %q", out)
		}
	})
}

// What root switches by nixos-rebuild stays, says so, and ends with something new.
func TestSwitchByHandIsRespected(t *testing.T) {
	const third = "33333333333333333333333333333333-nixos-system-web-01-3"
	for name, when := range map[string]time.Duration{"between activations": 5 * time.Minute,
		"in the middle of one": 2500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, map[string]sim.Closure{before: {}, target: {}, another: {}, third: {}})
				stop := m.start(m.sim)
				if when < time.Minute {
					for range 600 {
						if m.where()[0] == target {
							break
						}
						time.Sleep(100 * time.Millisecond)
					}
				}
				time.Sleep(when)
				m.must(m.sim.SwitchByHand(third))
				time.Sleep(time.Hour)
				if m.where() != all(third) || p.seen().Held == nil || *p.seen().Held != "switched by hand "+third {
					t.Errorf("at %v, check-in says %v", m.where(), p.seen().Held)
				}
				if !strings.Contains(p.acts(), protocol.KindThirdClosure) || p.reported(protocol.EventClosureQuarantined) {
					t.Errorf("reported %v", p.said())
				}
				p.release(another, time.Now())
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != all(another) {
					t.Errorf("something new: at %v", m.where())
				}
			})
		})
	}
}

func TestSwitchingBackByHandEndsTheHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		m.must(m.sim.SwitchByHand(another))
		time.Sleep(2 * time.Minute)
		m.must(m.sim.SwitchByHand(target))
		time.Sleep(2 * time.Minute)
		if p.seen().Held != nil || p.seen().AttestationSignature == nil {
			t.Errorf("check-in says %+v", p.seen())
		}
		m.must(m.sim.SwitchByHand(another))
		time.Sleep(2 * time.Minute)
		m.types("resume")
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("resumed: at %v", m.where())
		}
	})
}

// Root forgets the newest release seen; it is recorded and reported.
func TestResetMark(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		p.release(another, time.Now().Add(-time.Hour))
		time.Sleep(10 * time.Minute)
		if m.where() != all(target) {
			t.Fatalf("an older release was believed: %v", m.where())
		}
		m.types("reset-mark", "--reason", "a release from the far future")
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(another) || !strings.Contains(p.acts(), protocol.KindMarkReset) ||
			!strings.Contains(p.acts(), "far future") {
			t.Errorf("at %v, reported %s", m.where(), p.acts())
		}
	})
}

// Acts that were done while no agent ran are reported by the next one; a damaged
// note is set aside.
func TestActsOutliveTheAgent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.stateDirectory()
		m.types("pause", "--reason", "before the first start")
		m.must(journal.Directory(m.path("state/acts")).Write("0.json", struct{}{}))
		m.must(os.WriteFile(m.path("state/acts/1.json"), []byte("{"), 0o600))
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) || !strings.Contains(p.acts(), "before the first start") {
			t.Errorf("at %v, reported %s", m.where(), p.acts())
		}
		left, err := os.ReadDir(m.path("state/acts"))
		if err != nil || len(left) != 2 || left[0].Name() != "0.json.unfit" || left[1].Name() != "1.json.unfit" {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}

func TestStatusOfRoot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.stateDirectory()
		if out := m.types("status"); !strings.Contains(out, "has not run here yet") || !strings.Contains(out, before) {
			t.Errorf("before the first start: %s", out)
		}
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		m.must(os.WriteFile(m.path("state/"+quarantineFile), []byte("{"), 0o600))
		out := m.types("status")
		for _, want := range []string{"runs", target, testHost, p.id, "confirmed", "problem"} {
			if !strings.Contains(out, want) {
				t.Errorf("status lacks %q: %s", want, out)
			}
		}
		var s struct {
			Current   string     `json:"current"`
			Confirmed *confirmed `json:"confirmed"`
		}
		if err := pki.Decode([]byte(m.types("status", "--json")), &s); err != nil || s.Current != target ||
			s.Confirmed == nil {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// A generation that somebody switches to is told at once, also while the control plane
// holds a check-in.
func TestSwitchByHandEndsAHeldCheckin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		var said []string
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
				var req protocol.CheckinRequest
				if err := json.UnmarshalRead(r.Body, &req); err != nil {
					t.Error(err)
				}
				said = append(said, req.CurrentGeneration.ClosureHash)
				p.mu.Unlock()
				defer p.mu.Lock()
				<-r.Context().Done()
			}}
		})
		m := newMachine(t, p, good)
		m.must(m.sim.Realise(context.Background(), another, nil))
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		_, err := m.sim.Switch(context.Background(),
			nixops.SwitchRequest{Closure: another, Action: nixops.ActionSwitch, Unit: "by-hand"})
		m.must(err)
		time.Sleep(10 * time.Second)
		stop()
		p.set(func() {
			if len(said) != 2 || said[1] != another {
				t.Errorf("said %v", said)
			}
		})
	})
}
