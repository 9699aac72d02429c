package agent

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

func TestProbesThatCannotWorkAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "checks.json")
	for doc, want := range map[string]string{
		`{`:                                    "health checks",
		`{"mode":"sometimes"}`:                 "use disabled, permissive or enforce",
		`{"http":[{"name":"a"}]}`:              "url",
		`{"tcp":[{"name":"a"}]}`:               "port",
		`{"tcp":[{"name":"a","port":70000}]}`:  "port 70000",
		`{"exec":[{"name":"a","command":[]}]}`: "has no command",
		`{"units":[{"unit":"a.service"}]}`:     "name",
		`{"units":[{"name":"a","unit":"b"}],"tcp":[{"name":"a","port":1}]}`: "two probes are named",
		`{"http":[{"name":"a","url":"ftp://x"}]}`:                           "url",
		`{"http":[{"name":"a","url":"http://"}]}`:                           "url",
		`{"http":[{"name":"","url":"http://x"}]}`:                           "has no name",
		`{"http":[{"name":"a","url":"http://x","timeoutSeconds":-1}]}`:      "timeoutSeconds",
	} {
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadProbes(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", doc, err, want)
		}
	}
	if h, err := loadProbes(filepath.Join(t.TempDir(), "none")); err != nil || len(h.list(nil)) != 0 {
		t.Errorf("no file: %v", err)
	}
}

func TestKindsOfProbes(t *testing.T) {
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/sick":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/moved":
			http.Redirect(w, r, "/sick", http.StatusFound)
		}
	}))
	defer good.Close()
	_, port, err := net.SplitHostPort(good.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	h := &healthChecks{
		Mode: "enforce",
		HTTP: []httpProbe{
			{Name: "http good", URL: good.URL}, {Name: "http sick", URL: good.URL + "/sick"},
			{Name: "http wanted", URL: good.URL + "/sick", ExpectStatus: 503},
			{Name: "http moved", URL: good.URL + "/moved", ExpectStatus: 302}, {Name: "http lost", URL: good.URL + "/moved"},
			{Name: "http slow", URL: good.URL + "/slow", probeTimes: probeTimes{Timeout: 1}},
		},
		TCP: []tcpProbe{{Name: "tcp good", Port: uint32(number)}, {Name: "tcp closed", Port: uint32(nobody)}},
		Exec: []execProbe{
			{Name: "exec good", Command: []string{"/bin/sh", "-c", "exit 0"}},
			{Name: "exec bad", Command: []string{"/bin/sh", "-c", "echo no database; exit 3"}},
			{Name: "exec slow", Command: []string{"/bin/sleep", "600"}, probeTimes: probeTimes{Timeout: 1}},
			{Name: "exec missing", Command: []string{filepath.Join(t.TempDir(), "missing")}},
		},
	}
	p := newProber(h, nil, nil)
	for _, probe := range p.probes {
		p.once(t.Context(), probe)
	}
	said := map[string]string{
		"http sick": "answered 503", "http lost": "answered 503", "http slow": "deadline exceeded", "tcp closed": "refused",
		"exec bad": "exit status 3: no database", "exec slow": "killed", "exec missing": "no such file",
	}
	for _, r := range p.snapshot() {
		want := said[r.Name]
		if (want == "") != (r.Status == protocol.ProbePass) || (want == "") != (r.FailureReason == nil) ||
			r.LastRunAt == nil {
			t.Errorf("%+v", r)
		} else if want != "" && !strings.Contains(*r.FailureReason, want) {
			t.Errorf("%s failed with %q, want %q", r.Name, *r.FailureReason, want)
		}
	}
}

// A probe that hangs leaves nothing behind, and one that talks without end is not
// listened to without end.
func TestProbesLeaveNothingBehind(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	p := execProbe{Command: []string{"/bin/sh", "-c", "sleep 600 & echo $! >" + file + "; sleep 600"}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.run(ctx); err == nil {
		t.Error("it passed")
	}
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// Where nobody reaps it, it stays as a zombie.
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it goes on: %s", stat)
		}
	}
	var out ending
	for range 1000 {
		if n, err := out.Write([]byte(strings.Repeat("x", 997) + "end")); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(out) != endingKept || !strings.HasSuffix(string(out), "xend") || cap(out) > 10*endingKept {
		t.Errorf("kept %d bytes in %d: %.20q", len(out), cap(out), out)
	}
}

// units has one probe of a unit, and a slower one of another.
const units = `{"mode":"enforce","units":[
	{"name":"site","unit":"web.service","intervalSeconds":10,"gracePeriodSeconds":40},
	{"name":"other","unit":"other.service"}]}`

func (m *machine) checks(doc string) {
	m.t.Helper()
	m.must(os.WriteFile(m.path("checks.json"), []byte(doc), 0o600))
	m.adjust = func(c *Config) { c.HealthChecks = m.path("checks.json") }
}

// A unit that is not active keeps a generation from being proven, also where it
// has not failed. A failure within the grace period does not count.
func TestUnitProbeWantsTheUnitActive(t *testing.T) {
	for name, c := range map[string]struct {
		target sim.Closure
		want   [3]string
	}{
		"active":        {sim.Closure{}, all(target)},
		"never started": {sim.Closure{After: sim.After{Inactive: []string{"web.service"}}}, all(before)},
		"its socket listens": {sim.Closure{After: sim.After{Inactive: []string{"web.service"},
			Sockets: []string{"web.socket"}}}, all(target)},
		"its socket is down": {sim.Closure{After: sim.After{Inactive: []string{"web.service", "web.socket"},
			Sockets: []string{"web.socket"}}}, all(before)},
		"started in a while": {sim.Closure{
			After: sim.After{Inactive: []string{"web.service"}, InactiveFor: 35 * time.Second}}, all(target)},
		"started too late": {sim.Closure{After: sim.After{Inactive: []string{"web.service"}, InactiveFor: time.Hour}},
			all(before)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, with(c.target))
				m.checks(units)
				stop := m.start(m.sim)
				time.Sleep(20 * time.Minute)
				stop()
				if m.where() != c.want {
					t.Errorf("ended at %v", m.where())
				}
				if c.want == all(before) && !strings.Contains(p.refusals(protocol.EventActivationFailed), "probes: [site (fail)]") {
					t.Errorf("reports %v", p.said())
				}
			})
		})
	}
}

// What probes find reaches the control plane with the next check-in, at once.
func TestProbeResultsAreInCheckins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{
			After: sim.After{LateUnits: []string{"web.service"}, LateAfter: 10 * time.Minute}}))
		m.checks(units)
		m.adjust = func(c *Config) { c.HealthChecks, c.PollInterval = m.path("checks.json"), time.Hour }
		stop := m.start(m.sim)
		site := func() string {
			for _, r := range p.seen().HealthProbes {
				if r.Name == "site" && r.Kind == protocol.ProbeExec {
					return r.Status
				}
			}
			return "not sent"
		}
		time.Sleep(5 * time.Minute)
		if m.where() != all(target) || site() != protocol.ProbePass || p.seen().HealthCheckMode == nil ||
			*p.seen().HealthCheckMode != "enforce" {
			t.Errorf("at %v, the probe %s", m.where(), site())
		}
		time.Sleep(5*time.Minute + 30*time.Second)
		stop()
		if site() != protocol.ProbeFail {
			t.Errorf("after the unit failed: %s", site())
		}
	})
}

// The commands of probes are run by root, and are root's alone to write.
func TestProbesThatOthersCouldWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "checks.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadProbes(file); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := loadProbes(file); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("accepted: %v", err)
	}
}

func TestModesOfProbes(t *testing.T) {
	for mode, want := range map[string]int{"enforce": 2, "permissive": 1, "disabled": 0} {
		p := newProber(&healthChecks{Mode: mode, Exec: []execProbe{
			{Name: "bad", Command: []string{"/bin/false"}}, {Name: "good", Command: []string{"/bin/true"}},
			{Name: "late", Command: []string{"/bin/true"}},
		}}, nil, nil)
		for _, probe := range p.probes[:2] {
			p.once(context.Background(), probe)
		}
		if got := p.failing(); len(got) != want {
			t.Errorf("%s: %v keep a generation from being proven", mode, got)
		}
	}
}
