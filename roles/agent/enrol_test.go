package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// token gives the host an unused bootstrap token.
func (m *machine) token() {
	m.t.Helper()
	token, err := pki.MintToken(m.p.org, pki.Claims{
		Hostname: testHost, IssuedAt: pki.At(time.Now()), ExpiresAt: pki.At(time.Now().Add(24 * time.Hour)),
		Nonce: pki.NewNonce(),
	})
	m.must(err)
	doc, err := pki.Marshal(token)
	m.must(err)
	m.must(os.WriteFile(m.path("token"), doc, 0o600))
	m.adjust = func(c *Config) { c.TokenFile = m.path("token") }
}

// enrols answers enrolments; status 200 is a certificate.
func (p *plane) enrols(status *int, body string, asked *int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		*asked++
		if *status != http.StatusOK {
			w.WriteHeader(*status)
			fmt.Fprint(w, body)
			return
		}
		var req protocol.EnrollRequest
		err := json.UnmarshalRead(r.Body, &req)
		var csr *pki.CSR
		if err == nil {
			csr, err = pki.ParseCSR([]byte(req.CSRPEM))
		}
		var cert []byte
		if err == nil {
			cert, _, err = p.issuing.IssueAgent(csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
		}
		if err != nil {
			p.t.Error(err)
			return
		}
		doc, err := pki.Marshal(protocol.CertResponse{CertPEM: string(cert), NotAfter: pki.At(time.Now())})
		if err != nil {
			p.t.Error(err)
		}
		w.Write(doc)
	}
}

// watch runs an agent and tells how long its loop ever was silent to systemd.
func (m *machine) watch(during time.Duration) (silent time.Duration) {
	m.t.Helper()
	a, err := newAgent(m.config(m.sim))
	m.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(30 * time.Second) {
		silent = max(silent, time.Since(a.loop.status.lastTurn()))
	}
	cancel()
	if err := <-done; err != nil {
		m.t.Errorf("agent: %v", err)
	}
	return silent
}

// An enrolment is waited for as long as it takes, in steps of 10 s while the control
// plane says that it is not ready, and systemd does not take that for a stall.
func TestEnrolmentWaits_A19(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.token()
		m.must(os.RemoveAll(m.path("cert")))
		status, asked := http.StatusServiceUnavailable, 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/enroll": p.enrols(&status,
				`{"error":"control plane not ready","reason":"awaiting first signed artifact"}`, &asked)}
		})
		if silent := m.watch(time.Hour); silent > stallLimit/2 {
			t.Errorf("the loop was silent for %s", silent)
		}
		if asked < 350 || asked > 365 {
			t.Errorf("asked %d times in an hour", asked)
		}
		p.set(func() { status = http.StatusOK })
		m.watch(2 * time.Minute)
		if m.where() != all(target) {
			t.Errorf("at %v", m.where())
		}
	})
}

// A control plane that asks for a long pause gets it: the agent is not killed meanwhile.
func TestLongPauseIsNoStall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		asked := 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
				asked++
				w.Header().Set("Retry-After", "86400")
				w.WriteHeader(http.StatusServiceUnavailable)
			}}
		})
		if silent := m.watch(2 * time.Hour); silent > stallLimit/2 || asked < 8 || asked > 17 {
			t.Errorf("silent for %s, asked %d times", silent, asked)
		}
	})
}

// A token is not spent while its certificate could not be kept.
func TestTokenIsNotSpentOnNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i := &identity{hostname: testHost, certPath: filepath.Join(file, "below", "cert.pem"), now: time.Now}
	if err := i.prepare(); err == nil {
		t.Error("a directory below a file is taken for writable")
	}
	parents := filepath.Join(dir, "not", "there", "yet")
	i.certPath = filepath.Join(parents, "cert.pem")
	if err := i.prepare(); err != nil {
		t.Errorf("parents are not made: %v", err)
	}
	if left, err := os.ReadDir(parents); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A certificate that the control plane does not accept is kept until there is another:
// it may be the control plane that is wrong.
func TestRefusedCertificateIsKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.token()
		first, err := os.ReadFile(m.path("cert/agent.pem"))
		m.must(err)
		status, asked := http.StatusUnauthorized, 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{
				"/v1/enroll":        p.enrols(&status, "the nonce is in no list", &asked),
				"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
			}
		})
		stop := m.start(m.sim)
		time.Sleep(30 * time.Minute)
		p.set(func() {
			if kept, err := os.ReadFile(m.path("cert/agent.pem")); err != nil || string(kept) != string(first) || asked == 0 {
				t.Errorf("kept %d bytes, %v; asked %d times", len(kept), err, asked)
			}
		})
		// It was the control plane.
		p.set(func() { delete(p.routes, "/v1/agent/checkin") })
		time.Sleep(10 * time.Minute)
		if m.where() != all(target) {
			t.Errorf("at %v, status %+v", m.where(), m.local())
		}
		// It was the certificate.
		p.set(func() {
			status = http.StatusOK
			p.routes["/v1/agent/checkin"] = func(w http.ResponseWriter,
				r *http.Request) {
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
		time.Sleep(10 * time.Minute)
		stop()
		if kept, err := os.ReadFile(m.path("cert/agent.pem")); err != nil || string(kept) == string(first) ||
			!strings.Contains(string(kept), "CERTIFICATE") {
			t.Errorf("not enrolled anew: %v", err)
		}
	})
}

// A connection that ends without a word is a refused certificate only when it goes on to: a control plane that starts
// anew costs no token.
func TestEndedConnectionsCostNoTokenAtOnce(t *testing.T) {
	for ended, want := range map[int]int{refusals - 1: 0, refusals: 1} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			m.token()
			status, asked, left := http.StatusOK, 0, ended
			p.set(func() {
				p.routes = map[string]http.HandlerFunc{
					"/v1/enroll": p.enrols(&status, "", &asked),
					"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
						if left--; left == 0 {
							delete(p.routes, "/v1/agent/checkin")
						}
						panic(http.ErrAbortHandler)
					},
				}
			})
			m.watch(30 * time.Minute)
			if asked != want || m.where() != all(target) {
				t.Errorf("after %d connections that ended: enrolled %d times, want %d; at %v", ended, asked, want, m.where())
			}
		})
	}
}

// damaged is what may lie in the place of a certificate.
var damaged = map[string]func(m *machine, path string){
	"empty":       func(m *machine, path string) { m.must(os.WriteFile(path, nil, 0o600)) },
	"no PEM":      func(m *machine, path string) { m.must(os.WriteFile(path, []byte("\x00\x00\x00"), 0o600)) },
	"half":        func(m *machine, path string) { m.must(os.Truncate(path, 200)) },
	"a pipe":      func(m *machine, path string) { m.must(os.Remove(path)); m.must(syscall.Mkfifo(path, 0o600)) },
	"a directory": func(m *machine, path string) { m.must(os.Remove(path)); m.must(os.Mkdir(path, 0o700)) },
	"gone":        func(m *machine, path string) { m.must(os.Remove(path)) },
}

// A damaged certificate leads to an enrolment, and without a token to a wait that says what
// it is for: an agent that ended again and again would carry on nothing.
func TestDamagedCertificateIsWaitedFor(t *testing.T) {
	for name, damage := range damaged {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, good)
				status, asked := http.StatusOK, 0
				p.set(func() {
					p.routes = map[string]http.HandlerFunc{"/v1/enroll": p.enrols(&status, "", &asked)}
				})
				damage(m, m.path("cert/agent.pem"))
				m.watch(20 * time.Minute) // fails when the agent ends by itself
				s := m.local()
				if !strings.Contains(s.Waiting, "bootstrap token") || !strings.Contains(s.Next, "mint-token") || asked > 0 {
					t.Errorf("status %+v, asked %d times", s, asked)
				}
				m.token()
				m.watch(20 * time.Minute)
				if m.where() != all(target) || asked != 1 {
					t.Errorf("at %v, asked %d times, status %+v", m.where(), asked, m.local())
				}
			})
		})
	}
}

// The report of an enrolment that was refused says how, also where the refusal has no words.
func TestEnrolmentThatFailedSaysWhy(t *testing.T) {
	for body, want := range map[string]string{
		"": "401 Unauthorized", `{"error":"token expired","reason":"expired-token"}`: "token expired",
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			m.token()
			m.must(os.RemoveAll(m.path("cert")))
			status, asked, told := http.StatusUnauthorized, 0, ""
			p.set(func() {
				p.routes = map[string]http.HandlerFunc{
					"/v1/enroll": p.enrols(&status, body, &asked),
					"/v1/agent/bootstrap-report": func(w http.ResponseWriter, r *http.Request) {
						var report protocol.BootstrapReport
						if err := json.UnmarshalRead(r.Body, &report); err != nil {
							t.Error(err)
						}
						told = string(report.Event.Details)
						w.WriteHeader(http.StatusNoContent)
					},
				}
			})
			m.watch(2 * time.Minute)
			if !strings.Contains(told, want) {
				t.Errorf("told %s, want %s", told, want)
			}
		})
	}
}

// Status takes back what it said of a refused enrolment as soon as the host is enrolled, and
// not with the first check-in, whose answer may be held for minutes.
func TestStatusForgetsARefusedEnrolment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.token()
		m.must(os.RemoveAll(m.path("cert")))
		status, asked := http.StatusUnauthorized, 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{
				"/v1/enroll": p.enrols(&status, `{"error":"not on the signed list","reason":"unknown-nonce"}`, &asked),
				"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
					select { // held
					case <-r.Context().Done():
					case <-time.After(5 * time.Minute):
					}
				},
			}
		})
		m.watch(time.Minute)
		if s := m.local(); !strings.Contains(s.Waiting, "not on the signed list") {
			t.Errorf("refused, it waits for %q", s.Waiting)
		}
		p.set(func() { status = http.StatusOK })
		m.watch(time.Minute)
		if s := m.local(); !strings.Contains(s.Waiting, "this host is enrolled") {
			t.Errorf("enrolled, it waits for %q", s.Waiting)
		}
	})
}
