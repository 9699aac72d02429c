package agent

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// largest is the size of the largest check-in so far.
func (p *plane) largest() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := 0
	for _, n := range p.sizes {
		most = max(most, n)
	}
	return most
}

// One long name in an answer, wherever it stands, neither makes this host's own messages
// large, nor its log, status and queue of reports, nor keeps it from an honest control plane.
func TestLongNamesSilenceNoHost_T19(t *testing.T) {
	long := strings.Repeat("n", 900_000)
	for name, tamper := range map[string]func(*protocol.CheckinResponse){
		"channel of the head": func(r *protocol.CheckinResponse) { r.Head.Channel = long },
		"hash of the head":    func(r *protocol.CheckinResponse) { r.Head.Hash = long },
		"a path as a channel": func(r *protocol.CheckinResponse) { r.Head.Channel = "../../" + long },
		"closure":             func(r *protocol.CheckinResponse) { r.Target.ClosureHash = long },
		"rollout":             func(r *protocol.CheckinResponse) { r.Target.RolloutID = long },
		"reference":           func(r *protocol.CheckinResponse) { r.Target.ChannelRef = long },
		"mode": func(r *protocol.CheckinResponse) {
			r.Target.ComplianceMode, r.Target.ClosureHash = &long,
				another
		},
		"rollback": func(r *protocol.CheckinResponse) {
			r.Rollback = &protocol.Rollback{Rollout: long, TargetRef: long, Reason: long}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 60
				p.set(func() {
					p.tamper = func(r *protocol.CheckinResponse) {
						if r.Target != nil {
							tamper(r)
						}
					}
				})
				m := newMachine(t, p, good)
				var log bytes.Buffer
				m.adjust = func(c *Config) { c.Log = zerolog.New(zerolog.SyncWriter(&log)) }
				stop := m.start(m.sim)
				time.Sleep(30 * time.Minute)
				if most := p.largest(); most > 4096 {
					t.Errorf("a check-in has %d bytes", most)
				}
				for _, r := range p.said() {
					if len(r.Details) > 4096 {
						t.Errorf("a report of %s has %d bytes", r.Event, len(r.Details))
					}
				}
				p.set(func() { p.tamper = nil })
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != all(target) {
					t.Errorf("at %v, status %+v", m.where(), m.local())
				}
				for _, line := range strings.Split(log.String(), "\n") {
					if len(line) > 4096 {
						t.Errorf("logged %d bytes: %.200s", len(line), line)
					}
				}
				if doc, err := os.ReadFile(m.path("state/" + statusName)); err != nil || len(doc) > 8192 {
					t.Errorf("status of %d bytes, %v", len(doc), err)
				}
			})
		})
	}
}

// What the other side says is one line of printable text where it is kept.
func TestWordsOfOthersAreOneLine_T19(t *testing.T) {
	const escape = "\x1b]0;owned\x07\u202e\u009b31m\nsecond line"
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		p.set(func() {
			p.tamper = func(r *protocol.CheckinResponse) {
				r.Rollback = &protocol.Rollback{Rollout: p.id, TargetRef: "x", Reason: escape}
			}
		})
		time.Sleep(5 * time.Minute)
		shown := m.types("status")
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusTeapot)
				io.WriteString(w, escape)
			}}
		})
		time.Sleep(5 * time.Minute)
		shown += m.types("status")
		stop()
		if !strings.Contains(shown, "recalled by the control plane") || !strings.Contains(shown, "second line") {
			t.Errorf("nothing of it is shown: %s", shown)
		}
		if i := strings.IndexFunc(shown, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("shown: %q", shown[i:])
		}
	})
}

// A check-in that is called too large says less until it is taken.
func TestTooLargeSaysLess_T19(t *testing.T) {
	for _, refused := range []string{`"error"`, `"healthProbes":[{`} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.pace = 20
			m := newMachine(t, p, good)
			m.must(os.WriteFile(m.path("probes.json"),
				[]byte(`{"mode":"permissive","exec":[{"name":"a","command":["/bin/true"],"intervalSeconds":10}]}`), 0o600))
			m.adjust = func(c *Config) { c.HealthChecks = m.path("probes.json") }
			lie := true
			p.set(func() {
				p.tamper = func(r *protocol.CheckinResponse) {
					if lie {
						r.Head.Channel = "elsewhere"
					}
				}
				p.refuse = func(body []byte) int {
					if bytes.Contains(body, []byte(refused)) {
						return http.StatusRequestEntityTooLarge
					}
					return 0
				}
			})
			stop := m.start(m.sim)
			time.Sleep(30 * time.Minute)
			p.set(func() { lie = false })
			time.Sleep(30 * time.Minute)
			stop()
			if m.where() != all(target) {
				t.Errorf("%s: at %v, status %+v", refused, m.where(), m.local())
			}
		})
	}
}

// What a lying control plane said of a rollout does not keep the host from it later, also
// where the honest one knows no heads and waits for the host's word.
func TestV1DoubtEnds_T19(t *testing.T) {
	for name, lie := range map[string]func(p *plane, r *protocol.CheckinResponse){
		"another closure": func(p *plane, r *protocol.CheckinResponse) { r.Target.ClosureHash = another },
		"a head": func(p *plane, r *protocol.CheckinResponse) {
			r.Target, r.Head = nil, &protocol.HeadRef{Channel: "/", Hash: "x"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newV1Plane(t)
				m := newMachine(t, p, good)
				p.set(func() {
					p.tamper = func(r *protocol.CheckinResponse) {
						if r.Target != nil {
							lie(p, r)
						}
					}
				})
				stop := m.start(m.sim)
				time.Sleep(10 * time.Minute)
				p.set(func() { p.tamper = nil })
				time.Sleep(time.Hour)
				stop()
				if m.where() != all(target) {
					t.Errorf("at %v, last said %+v", m.where(), p.seen().LastFetchOutcome)
				}
			})
		})
	}
}

// Under a control plane of v1 a check-in that names the target's closure is a confirm. None
// is sent before the generation is proven, also by an agent that is started in between.
func TestV1NoCheckinOfUnprovenGeneration_T26(t *testing.T) {
	for name, c := range map[string]struct {
		whoami int
		kill   time.Duration
	}{"undisturbed": {200, 0}, "without whoami": {404, 0}, "killed": {200, 7 * time.Second}, "killed later": {200,
		15 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newV1Plane(t)
				m := newMachine(t, p, good)
				asked := 0
				p.set(func() {
					p.routes = map[string]http.HandlerFunc{"/v1/whoami": func(w http.ResponseWriter, r *http.Request) {
						asked++
						w.WriteHeader(c.whoami)
						io.WriteString(w, `{"cn":"x","issuedAt":"2026-03-01T12:00:00+00:00"}`)
					}}
				})
				stop := m.start(m.sim)
				if c.kill > 0 {
					time.Sleep(c.kill)
					stop()
					stop = m.start(m.sim)
				}
				time.Sleep(10 * time.Minute)
				stop()
				p.set(func() {
					if p.early != 0 || p.confirms != 1 || asked == 0 {
						t.Errorf("%d check-ins named it before the confirm; %d confirms, asked %d times", p.early, p.confirms, asked)
					}
				})
				if m.where() != all(target) || p.seen().CurrentGeneration.ClosureHash != target {
					t.Errorf("at %v, last said %+v", m.where(), p.seen())
				}
			})
		})
	}
}

// A generation that cannot be proven is never named to a control plane of v1, and a confirm
// that nobody answers does not silence the host for good.
func TestV1ConfirmThatIsNotTaken_T26(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		p.confirm = http.StatusServiceUnavailable
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(30 * time.Minute)
		if p.seen().CurrentGeneration.ClosureHash != target {
			t.Errorf("what runs is not told: %+v", p.seen())
		}
		p.release(another, time.Now())
		time.Sleep(30 * time.Minute)
		stop()
		if m.where() != all(another) {
			t.Errorf("at %v", m.where())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}))
		stop := m.start(m.sim)
		time.Sleep(30 * time.Minute)
		stop()
		if m.where() != all(before) || p.early != 0 {
			t.Errorf("at %v, named %d times", m.where(), p.early)
		}
	})
}

// A refused enrolment, and a control plane that was away, are not shown any more once they
// are over, though the next check-in is held.
func TestStatusForgetsTroubleThatIsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.noTarget, p.holds = true, true
		m := newMachine(t, p, good)
		m.token()
		m.must(os.RemoveAll(m.path("cert")))
		status, asked := http.StatusUnauthorized, 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/enroll": p.enrols(&status, "the nonce is not on the signed list",
				&asked)}
		})
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		if s := m.local(); !strings.Contains(s.Waiting, "not on the signed list") {
			t.Errorf("while it is refused: %+v", s)
		}
		var was, now int
		p.set(func() { status, was = http.StatusOK, asked })
		for range 600 {
			time.Sleep(time.Second)
			if p.set(func() { now = asked }); now > was {
				break
			}
		}
		time.Sleep(10 * time.Second)
		if s := m.local(); strings.Contains(s.Waiting+s.ContactError, "signed list") ||
			time.Since(s.LastContact.Time) > time.Minute {
			t.Errorf("after it was taken: %+v", s)
		}
		p.set(func() { p.away = true })
		time.Sleep(20 * time.Minute)
		if s := m.local(); s.ContactError == "" {
			t.Errorf("while it is away: %+v", s)
		}
		p.set(func() { p.away = false })
		time.Sleep(maxContact + time.Minute)
		if s := m.local(); s.ContactError != "" || time.Since(s.LastContact.Time) > maxContact+time.Minute {
			t.Errorf("after it is back: %+v", s)
		}
		stop()
	})
}

// A command of root's on a machine that has no agent says so and leaves nothing behind; the
// guard, which runs at every boot, goes on doing nothing there.
func TestCommandsWithoutAnAgentFail(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	for _, words := range [][]string{
		{"status"}, {"status", "--json"}, {"pause"}, {"resume"}, {"undo"}, {"rollback"}, {"reset-mark"},
		{"activate", "/nix/store/" + target},
	} {
		args := append([]string{"agent", words[0], "--state-dir", missing, "--simulated-host", filepath.Join(dir, "host"),
			"--simulated-cache", dir}, words[1:]...)
		app := &cli.App{Name: "nixfleet", Commands: []*cli.Command{Command()}, Writer: io.Discard, ErrWriter: io.Discard,
			ExitErrHandler: func(*cli.Context, error) {}}
		err := app.Run(append([]string{"nixfleet"}, args...))
		if err == nil || !strings.Contains(err.Error(), "no agent has run on this machine") || command.HintOf(err) == "" {
			t.Errorf("%v: %v", words, err)
		}
		if _, err := os.Stat(missing); err == nil {
			t.Fatalf("%v made the state directory", words)
		}
	}
	app := &cli.App{Name: "nixfleet", Commands: []*cli.Command{Command()}, Writer: io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*cli.Context, error) {}}
	if err := app.Run([]string{"nixfleet", "agent", "guard", "--state-dir", missing, "--simulated-host",
		filepath.Join(dir, "host"), "--simulated-cache", dir}); err != nil {
		t.Errorf("guard: %v", err)
	}
}

// SIGHUP ends no agent: a test that fails here dies of it.
func TestHangUpEndsNoAgent(t *testing.T) {
	stop := hangUps(zerolog.Nop())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
}

// --check-config says when no issuing CA is pinned, and refuses a pin that cannot be read.
func TestCheckConfigNamesAMissingPin_T18(t *testing.T) {
	p := newPlane(t)
	m := newMachine(t, p, good)
	check := func() (string, error) {
		var said bytes.Buffer
		app := &cli.App{Name: "nixfleet", Commands: []*cli.Command{Command()}, Writer: io.Discard, ErrWriter: &said,
			ExitErrHandler: func(*cli.Context, error) {}}
		err := app.Run([]string{
			"nixfleet", "agent", "run", "--check-config", "--control-plane-url", "https://cp", "--machine-id", testHost,
			"--trust-file", m.path("trust.json"),
			"--ca-cert", m.path("ca.pem"), "--client-cert", m.path("cert/agent.pem"), "--ssh-host-key-file", m.path("key"),
			"--state-dir", m.path("state"),
			"--simulated-host", m.path("machine"), "--simulated-cache", filepath.Join(m.dir, "cache"),
		})
		return said.String(), err
	}
	if said, err := check(); err != nil || !strings.Contains(said, "pins no issuing CA") {
		t.Errorf("without a pin: %q, %v", said, err)
	}
	m.pin(p.issuing.Cert)
	if said, err := check(); err != nil || said != "" {
		t.Errorf("with a pin: %q, %v", said, err)
	}
	trust, _, err := pki.ParseTrust(p.trust)
	m.must(err)
	trust.IssuanceCAPEMs = []string{"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}
	doc, err := trust.Marshal()
	m.must(err)
	m.must(os.WriteFile(m.path("trust.json"), doc, 0o600))
	if _, err := check(); err == nil || !strings.Contains(err.Error(), "issuing CA 0") {
		t.Errorf("with a pin that is none: %v", err)
	}
}
