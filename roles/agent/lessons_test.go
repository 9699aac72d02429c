package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// Every exit code of a switch has its own end, and its own words in the report.
func TestExitCodesAreToldApart_A3(t *testing.T) {
	for code, c := range map[int]struct {
		want  [3]string
		event string // "" is none of failure
		words string
	}{
		1: {all(before), protocol.EventActivationFailed,
			"exit 1: a pre-switch check, a switch inhibitor or the boot loader refused"},
		2:   {all(before), protocol.EventActivationFailed, "exit 2: the activation script failed"},
		4:   {all(target), "", ""}, // some unit failed, but none that had not before
		7:   {all(before), protocol.EventActivationFailed, "exit 7: an exit code that switch-to-configuration does not use"},
		11:  {all(before), protocol.EventRollbackTriggered, "lock-held: another switch is running"},
		100: {all(before), protocol.EventActivationDeferred, `"component":"systemd"`},
		101: {all(before), protocol.EventActivationFailed, "exit 101: the switch script itself died"},
		137: {all(before), protocol.EventActivationFailed, "exit 137: killed by a signal"},
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(sim.Closure{Script: sim.Script{ExitCode: code}}))
				stop := m.start(m.sim)
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != c.want {
					t.Errorf("ended at %v", m.where())
				}
				blamed := c.event == protocol.EventActivationFailed
				if blamed != p.reported(protocol.EventClosureQuarantined) || (code == 100) != (m.bootsOnce() == target) {
					t.Errorf("boots %q once, reports %v", m.bootsOnce(), p.said())
				}
				if c.event == "" {
					return
				}
				if got := p.refusals(c.event); !strings.Contains(got, c.words) {
					t.Errorf("reported %s", got)
				}
				if got := p.refusals(protocol.EventActivationFailed); blamed &&
					!strings.Contains(got, fmt.Sprintf(`"exit_code":%d`, code)) {
					t.Errorf("reported %s", got)
				}
			})
		})
	}
}

// An undo is done when the recorded paths are back, whatever a script returned,
// and is not done while they are not, whatever a script returned.
func TestUndoIsJudgedByThePaths_A7_A8(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		closures := with(sim.Closure{Script: sim.Script{BootExit: 1}})
		closures[before] = sim.Closure{Script: sim.Script{ExitCode: 2}} // the way back grumbles
		m := newMachine(t, p, closures)
		s := &forgetful{snapshots: snapshots{Host: m.sim, m: m, stop: func() {}, at: -1}}
		s.forgetful.Store(true)
		u := m.undoer()
		u.Host = s
		m.sim.OnDeadline(func(nixops.Deadline) {
			if err := u.Deadline(context.Background(), ""); err == nil {
				t.Error("the deadline calls it done")
			}
		})
		stop := m.start(s)
		time.Sleep(10 * time.Minute)
		j, err := journal.Directory(m.path("state")).Journal()
		if err != nil || j == nil || j.Step != journal.Undoing || p.reported(protocol.EventRollbackTriggered) {
			t.Errorf("called done although the profile is not back: %+v, %v, at %v", j, err, m.where())
		}
		s.forgetful.Store(false)
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) || !p.reported(protocol.EventRollbackTriggered) ||
			!p.reported(protocol.EventClosureQuarantined) {
			t.Errorf("ended at %v, reports %v", m.where(), p.said())
		}
		// The way back is the previous closure's own script.
		for _, r := range s.requests {
			if r.NoCheck && r.Closure != before {
				t.Errorf("undone by the script of %s", r.Closure)
			}
		}
	})
}

// forgetful is a machine whose profile does not go back.
type forgetful struct {
	snapshots
	forgetful atomic.Bool
	requests  []struct {
		Closure string
		NoCheck bool
	}
}

func (f *forgetful) SetProfile(ctx context.Context, c string) error {
	if c == before && f.forgetful.Load() {
		return nil
	}
	return f.Host.SetProfile(ctx, c)
}

func (f *forgetful) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	f.requests = append(f.requests, struct {
		Closure string
		NoCheck bool
	}{r.Closure, len(r.Env) > 0})
	return f.Host.Switch(ctx, r)
}

// The link of the current system flips long before the units have restarted.
func TestTheLinkIsNoSuccess_A15(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Script: sim.Script{SwitchTime: 2 * time.Minute},
			After: sim.After{FailedUnits: []string{"web.service"}}}))
		s := &eager{Host: m.sim}
		stop := m.start(s)
		time.Sleep(20 * time.Minute)
		stop()
		if m.where() != all(before) || !p.reported(protocol.EventActivationFailed) || p.confirmed() != 0 {
			t.Errorf("ended at %v, %d confirms", m.where(), p.confirmed())
		}
	})
}

// eager shows the target as current as soon as its switch runs.
type eager struct{ *sim.Host }

func (e *eager) CurrentSystem(ctx context.Context) (string, error) {
	if held, err := e.Host.LockHeld(ctx); err == nil && held {
		return target, nil
	}
	return e.Host.CurrentSystem(ctx)
}

// The switch and its unit go on when the agent is killed by it, and the agent
// that follows takes up what it finds.
func TestAgentIsReplacedByItsOwnSwitch_A1(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Script: sim.Script{SwitchTime: time.Minute}}))
		stop := m.start(m.sim)
		for range 600 {
			if j, err := journal.Directory(m.path("state")).Journal(); err == nil && j != nil && j.Step == journal.Switching {
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
		stop()
		m.sim.OnSwitched(func(string) { stop = m.start(m.sim) })
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("ended at %v, %d confirms", m.where(), p.confirmed())
		}
	})
}

// The trust file is read at every use: its change alone restarts nobody.
func TestTrustIsReadAnew_A16(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		old := p.ci
		fresh, err := pki.GenerateKey(pki.AlgorithmEd25519)
		m.must(err)
		p.set(func() { p.ci = fresh })
		p.release(target, time.Now())
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		if m.where() != all(before) {
			t.Fatalf("a stranger's release was believed: %v", m.where())
		}
		current, previous := fresh.Public(), old.Public()
		trust, err := (&pki.Trust{SchemaVersion: 1,
			CIReleaseKey: pki.KeySlot{Current: &current, Previous: &previous}}).Marshal()
		m.must(err)
		m.must(os.WriteFile(m.path("trust.json"), trust, 0o600))
		m.must(sim.WriteClosure(filepath.Join(m.dir, "cache"), target, sim.Closure{Agent: "self", TrustJSON: string(trust)}))
		p.release(target, time.Now())
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

// An agent that starts into an activation while the control plane restarts keeps
// asking; it neither ends nor gives up what is proven.
func TestRecoveryOutlivesARestartOfTheControlPlane_A19(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.set(func() { p.confirm = http.StatusServiceUnavailable })
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		p.set(func() { p.away = true })
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, m.config(m.sim)) }()
		time.Sleep(20 * time.Minute)
		select {
		case err := <-ended:
			t.Fatalf("the agent ended: %v", err)
		default:
		}
		if m.where() != all(target) {
			t.Errorf("gave up what was proven: %v", m.where())
		}
		p.set(func() { p.away, p.confirm, p.confirms = false, http.StatusNoContent, 0 })
		time.Sleep(20 * time.Minute)
		cancel()
		<-ended
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("ended at %v after %d confirms", m.where(), p.confirmed())
		}
	})
}

// A journal that cannot be believed is kept for people, reported, and changes
// nothing on the host: neither by the agent nor by deadline, guard or root.
func TestDamagedJournalLeavesTheHostAsItIs(t *testing.T) {
	for name, damage := range map[string]func(doc []byte) []byte{
		"truncated": func(doc []byte) []byte { return doc[:len(doc)/2] },
		"empty":     func([]byte) []byte { return nil },
		"foreign":   func([]byte) []byte { return []byte(`{"version":1,"phase":"confirm","target":"/nix/store/x"}`) },
		"newer":     func(doc []byte) []byte { return []byte(strings.Replace(string(doc), `"version":1`, `"version":9`, 1)) },
		"edited":    func(doc []byte) []byte { return []byte(strings.Replace(string(doc), before, another, 1)) },
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s while running %v", name, running), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPlane(t)
					p.pace = 20
					m := newMachine(t, p, staged(sim.Closure{}))
					stop := m.start(m.sim)
					time.Sleep(2 * time.Minute)
					if !running {
						stop()
					}
					p.set(func() { p.noTarget = true })
					doc, err := os.ReadFile(m.path("state/journal.json"))
					m.must(err)
					doc = damage(doc)
					m.must(os.WriteFile(m.path("state/journal.json"), doc, 0o600))
					if !running {
						u := m.undoer()
						for who, act := range map[string]func(context.Context) error{
							"deadline": func(ctx context.Context) error { return u.Deadline(ctx, "") }, "guard": u.Guard,
							"undo": func(ctx context.Context) error { return u.Undo(ctx, journal.Reason{Text: "x"}) },
						} {
							if err := act(context.Background()); err == nil {
								t.Errorf("%s says nothing of it", who)
							}
						}
						stop = m.start(m.sim)
					}
					time.Sleep(10 * time.Minute)
					stop()
					kept, err := os.ReadFile(m.path("state/journal.json.unfit"))
					if err != nil || string(kept) != string(doc) {
						t.Errorf("kept is %.40q, %v", kept, err)
					}
					if m.where() != all(before) || m.bootsOnce() != target {
						t.Errorf("at %v, boots %q once", m.where(), m.bootsOnce())
					}
					if !strings.Contains(p.acts(), protocol.KindJournalSetAside) || p.seen().Phase == nil ||
						p.seen().Phase.Name != protocol.PhaseIdle {
						t.Errorf("reported %s, phase %+v", p.acts(), p.seen().Phase)
					}
				})
			})
		}
	}
}

// A deadline that fires in the middle of a commit waits for its end and finds
// nothing to undo; a commit that begins after an undo has begun does not happen.
func TestCommitAndDeadlineExcludeEachOther(t *testing.T) {
	for _, first := range []string{"commit", "deadline"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			m.must(m.sim.Realise(context.Background(), target, nil))
			exit, err := m.sim.Switch(context.Background(),
				nixops.SwitchRequest{Closure: target, Action: nixops.ActionTest, Unit: "nixfleet-switch-1"})
			if err != nil || !exit.OK() {
				t.Fatal(exit, err)
			}
			a, err := newAgent(m.config(m.sim))
			m.must(err)
			defer a.client.CloseIdle()
			j := anyJournal()
			j.Step, j.Closure, j.Before, j.BootID = journal.Proven, target, journal.Recorded{Current: before, Profile: before,
				BootDefault: before}, m.boot()
			m.must(a.dir.Begin(j))
			done := make(chan error, 2)
			commit := func() { _, err := a.activator.committer.commit(context.Background(), j); done <- err }
			deadline := func() { done <- a.undoer.Deadline(context.Background(), j.Units.Deadline) }
			want := all(target)
			if first == "commit" {
				go commit()
				time.Sleep(time.Second) // its boot takes two
				go deadline()
			} else {
				go deadline()
				time.Sleep(time.Second)
				go commit()
				want = all(before)
			}
			for range 2 {
				if err := <-done; err != nil && first == "commit" {
					t.Errorf("%s first: %v", first, err)
				}
			}
			if m.where() != want {
				t.Errorf("%s first: ended at %v", first, m.where())
			}
		})
	}
}

// What an activation writes down is readable by people without this program.
func TestJournalIsPlainJSON(t *testing.T) {
	dir := openDir(t)
	if err := dir.Begin(anyJournal()); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(dir.Path(journal.File))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Version int
		Body    map[string]any
	}
	if err := json.Unmarshal(doc, &e); err != nil || e.Version != 1 || e.Body["step"] != "fetching" ||
		e.Body["before"] == nil {
		t.Errorf("%s: %v", doc, err)
	}
}
