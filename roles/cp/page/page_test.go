package page

import (
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// rolloutID is that of the one rollout of the small fleet.
var rolloutID = strings.Repeat("3c", 32)

const (
	commit  = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913"
	closure = "0c0pgwn4j6rvd1yi3cxwxy15w7ghlhhn-nixos-system-web-01-26.05"
	// hostile is what a host could call itself, or give as a reason.
	hostile = `<script>alert("1")</script>` + "\u202etxt.exe"
)

func before(d time.Duration) *pki.Timestamp {
	at := pki.At(noon.Add(-d))
	return &at
}

// smallFleet is a Plane of three hosts in a halted rollout.
type smallFleet struct {
	Plane  // what is not asked for below
	events chan protocol.Event
	done   []string
}

func (f *smallFleet) Whoami(context.Context) (*protocol.Whoami, error) {
	return &protocol.Whoami{CN: "operator-jo"}, nil
}

func (f *smallFleet) Channels(context.Context) (*protocol.ChannelsResponse, error) {
	signed, sha, id := protocol.Offset(noon.Add(-time.Hour)), commit, rolloutID
	return &protocol.ChannelsResponse{Channels: []protocol.ChannelEntry{{
		ChannelResponse: protocol.ChannelResponse{Name: "stable", DeclaredCICommit: &sha, SignedAt: &signed,
			FreshnessWindowMinutes: 1440},
		Counts:    protocol.HostCounts{Hosts: 3, Failed: 1, Waiting: 1, Converged: 1},
		RolloutID: &id, RolloutState: "Halted",
	}}}, nil
}

func (f *smallFleet) entries() []protocol.HostEntry {
	first, second, sha := uint32(0), uint32(1), closure
	state, queued, reverted := "Soaked", "Queued", "Reverted"
	running := &protocol.HostRelease{Commit: commit, Since: before(time.Hour)}
	return []protocol.HostEntry{
		{Hostname: hostile, Channel: "stable", CurrentClosureHash: &sha, DeclaredClosureHash: &sha, RolloutState: &reverted,
			LastCheckinAt: before(time.Second), Standing: protocol.StandsFailed, Wave: &first, Canary: true,
			Reason: &protocol.Reason{Code: "reverted", Text: "its closure failed: " + hostile, Next: "release a fix"}},
		{Hostname: "web-01", Channel: "stable", CurrentClosureHash: &sha, DeclaredClosureHash: &sha, RolloutState: &state,
			LastCheckinAt: before(5 * time.Second), Standing: protocol.StandsConverged, Converged: true, Wave: &first,
			Canary: true, Running: running},
		{Hostname: "web-02", Channel: "stable", DeclaredClosureHash: &sha, RolloutState: &queued,
			Standing: protocol.StandsWaiting, Wave: &second, Running: &protocol.HostRelease{},
			Reason: &protocol.Reason{Code: "halted", Text: "the rollout is halted"}},
	}
}

func (f *smallFleet) HostsPage(_ context.Context, q client.HostsQuery) (*protocol.HostsResponse, error) {
	answer := &protocol.HostsResponse{Counts: &protocol.HostCounts{}}
	for _, e := range f.entries() {
		if q.State == "" || q.State == string(e.Standing) {
			answer.Hosts = append(answer.Hosts, e)
			answer.Counts.Add(e.Standing)
		}
	}
	return answer, nil
}

func (f *smallFleet) Host(_ context.Context, name string) (*protocol.HostDetail, error) {
	for _, e := range f.entries() {
		if e.Hostname == name {
			exit, log, verdict := int32(4), "starting\n"+hostile, "verified"
			return &protocol.HostDetail{Host: e, Reason: *e.Reason, Waves: 2, Attempt: 1,
				Failure: &protocol.HostFailure{At: protocol.Offset(noon.Add(-time.Minute)), Event: "activation-failed",
					Cause: "health-gate: web.service", ExitCode: &exit, Log: &log, Verdict: &verdict},
				Reports: []protocol.HostReport{{Event: "activation-failed", ReceivedAt: protocol.Offset(noon),
					Details: []byte(`{"stderr_tail":"</pre><b>"}`)}}}, nil
		}
	}
	return nil, &client.Error{Status: http.StatusNotFound, Message: "the fleet declares no host " + name}
}

func (f *smallFleet) Rollouts(context.Context, client.RolloutsQuery) (*protocol.RolloutsResponse, error) {
	return &protocol.RolloutsResponse{Rollouts: []protocol.RolloutSummary{{RolloutID: rolloutID, Channel: "stable",
		CreatedAt: protocol.Offset(noon.Add(-10 * time.Minute)), State: "Halted", Ref: commit,
		HaltReason: "host " + hostile + ": activation-failed"}}}, nil
}

func (f *smallFleet) Waves(context.Context, string) (*protocol.RolloutWaves, error) {
	until := pki.At(noon.Add(90 * time.Second))
	return &protocol.RolloutWaves{RolloutID: rolloutID, Waves: []protocol.RolloutWave{
		{Wave: 0, Open: true, OpenedAt: before(10 * time.Minute), SoakSecs: 600, SoakingUntil: &until, Hosts: 2,
			States: map[string]int{"Soaked": 1, "Reverted": 1}},
		{Wave: 1, SoakSecs: 60, Hosts: 1, States: map[string]int{"Queued": 1}},
	}}, nil
}

func (f *smallFleet) Trace(context.Context, string) (*protocol.Trace, error) {
	ended, how := protocol.Offset(noon.Add(-8*time.Minute)), "converged"
	return &protocol.Trace{RolloutID: rolloutID, Events: []protocol.TraceEvent{{Host: "web-01",
		DispatchedAt:  protocol.TraceTime{OffsetTime: protocol.Offset(noon.Add(-9 * time.Minute))},
		TerminalState: &how, TerminalAt: &ended}}}, nil
}

func (f *smallFleet) Plan(context.Context, map[string][]byte) (*protocol.Plan, error) {
	halted := protocol.Reason{Code: "halted", Text: "the rollout is halted", Next: "nixfleet rollout resume stable"}
	return &protocol.Plan{At: pki.At(noon), Channels: []protocol.PlanChannel{{Channel: "stable", State: "Halted",
		Reason: &halted}}, Blocked: []protocol.PlanBlocked{{Host: "web-02", Channel: "stable", Reason: halted},
		{Host: "web-03", Channel: "stable", Reason: halted}}}, nil
}

func (f *smallFleet) History(context.Context, protocol.HistoryQuery) (*protocol.History, error) {
	return &protocol.History{Events: []protocol.Event{{Seq: 7, At: pki.At(noon.Add(-time.Minute)), Kind: "rollout-halted",
		Channel: "stable", Detail: hostile, Reason: "activation-failed"}}}, nil
}

func (f *smallFleet) Certificates(context.Context, int) (*protocol.CertificatesResponse, error) {
	return &protocol.CertificatesResponse{Agents: 1, Certificates: []protocol.CertificateView{
		{Kind: protocol.CertificateServer, Name: "cp.example.com", NotAfter: pki.At(noon.Add(48 * time.Hour))},
		{Kind: protocol.CertificateAgent, Name: "web-01", NotAfter: pki.At(noon.Add(48 * time.Hour))},
	}}, nil
}

func (f *smallFleet) Audit(context.Context, int64, int) (*protocol.Audit, error) {
	return &protocol.Audit{Entries: []protocol.AuditEntry{{Seq: 1, At: pki.At(noon), Actor: "operator-jo", Action: "pause",
		Subject: rolloutID, Reason: hostile}}, Before: 1}, nil
}

func (f *smallFleet) Events(ctx context.Context, q client.EventQuery, each func(protocol.Event) error) error {
	for {
		select {
		case e, more := <-f.events:
			if !more {
				return io.EOF
			}
			if e.Seq <= q.After {
				continue
			}
			if err := each(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *smallFleet) Hold(_ context.Context, id, action, reason string) error {
	f.done = append(f.done, action+" "+id+" "+reason)
	return nil
}

func (f *smallFleet) Retry(_ context.Context, host, reason string) error {
	f.done = append(f.done, "retry "+host+" "+reason)
	return nil
}

func small() (*Page, *smallFleet) {
	f := &smallFleet{events: make(chan protocol.Event)}
	p := New(f)
	p.now = func() time.Time { return noon }
	return p, f
}

// shown is a page as a browser is given it.
func shown(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestPagesOfASmallFleet holds every page to what it was, by its main part.
func TestPagesOfASmallFleet(t *testing.T) {
	p, _ := small()
	for name, path := range map[string]string{
		"overview": "/", "hosts": "/hosts?state=failed", "host": "/hosts/" + escaped(hostile), "rollouts": "/rollouts",
		"rollout": "/rollouts/" + rolloutID, "releases": "/releases", "release": "/releases/" + commit,
		"certificates": "/certificates", "events": "/events?host=web-01", "audit": "/audit",
		"resume": "/rollouts/" + rolloutID + "/act/resume", "retry": "/hosts/" + escaped(hostile) + "/retry",
		"missing": "/hosts/none",
	} {
		t.Run(name, func(t *testing.T) {
			got := shown(p, path, "Nixfleet-Part", "main").Body.String()
			got = regexp.MustCompile(`name="token" value="[^"]+"`).ReplaceAllString(got, `name="token" value="TOKEN"`)
			file := filepath.Join("testdata", name+".html")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || got != string(want) {
				t.Errorf("%s is not as recorded (%v); go test ./roles/cp/page -update, and look at the difference:\n%s", path,
					err, got)
			}
		})
	}
}

// TestForeignTextIsOnlyText: what hosts say of themselves neither marks the page up nor turns
// the direction of reading, on any page.
func TestForeignTextIsOnlyText(t *testing.T) {
	p, _ := small()
	seen := 0
	for _, path := range []string{
		"/", "/hosts", "/hosts/" + escaped(hostile), "/rollouts", "/rollouts/" + rolloutID, "/events", "/audit",
		"/hosts?host=" + escaped(hostile), "/hosts/" + escaped("none"+hostile),
	} {
		w := shown(p, path)
		body := w.Body.String()
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "\u202e") ||
			strings.Contains(body, "</pre><b>") {
			t.Errorf("%s has the text of a host as markup:\n%s", path, body)
		}
		seen += strings.Count(body, "&lt;script&gt;")
		nonce := regexp.MustCompile(`script-src 'nonce-([A-Z0-9]+)'`).FindStringSubmatch(
			w.Header().Get("Content-Security-Policy"))
		if nonce == nil || strings.Count(body, "<script nonce=\""+nonce[1]+"\">") != 1 {
			t.Errorf("%s: its one script has not the nonce of the policy %q", path,
				w.Header().Get("Content-Security-Policy"))
		}
	}
	if seen < 10 {
		t.Errorf("the text is shown %d times only; is it still asked for?", seen)
	}
}

// TestNothingIsLoadedFromElsewhere looks for addresses of other machines, and for what a
// strict policy would refuse.
func TestNothingIsLoadedFromElsewhere(t *testing.T) {
	p, _ := small()
	for _, path := range []string{"/", "/hosts", "/rollouts/" + rolloutID, "/hosts/" + escaped(hostile), "/events"} {
		body := shown(p, path).Body.String()
		for _, m := range regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
			if !strings.HasPrefix(m[1], "/") && !strings.HasPrefix(m[1], "#") && !strings.HasPrefix(m[1], "?") &&
				!strings.HasPrefix(m[1], "data:image/svg+xml,") || strings.HasPrefix(m[1], "//") {
				t.Errorf("%s refers to %s", path, m[1])
			}
		}
		if m := regexp.MustCompile(`<[a-z][^>]* (style|on[a-z]+)=`).FindString(body); m != "" {
			t.Errorf("%s has %s, which the policy refuses", path, m)
		}
	}
}

func TestTheStreamTellsWhatIsNew(t *testing.T) {
	p, f := small()
	server := httptest.NewServer(p)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/live?after=7", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	f.events <- protocol.Event{Seq: 7, Detail: hostile}
	f.events <- protocol.Event{Seq: 8, Detail: hostile}
	close(f.events)
	told, err := io.ReadAll(resp.Body)
	if err != nil || string(told) != ": hello\n\nid: 8\ndata: 8\n\n" {
		t.Errorf("told %q, %v", told, err)
	}
	for _, bad := range []string{"/live", "/live?after=x", "/live?after=-1"} {
		if got := shown(p, bad).Code; got != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", bad, got)
		}
	}
}

// busyFleet is a small fleet in which something happens whenever somebody looks at its hosts.
type busyFleet struct {
	smallFleet
	seq int64
}

func (f *busyFleet) HostsPage(ctx context.Context, q client.HostsQuery) (*protocol.HostsResponse, error) {
	answer, err := f.smallFleet.HostsPage(ctx, q)
	f.seq++
	return answer, err
}

func (f *busyFleet) History(context.Context, protocol.HistoryQuery) (*protocol.History, error) {
	return &protocol.History{Events: []protocol.Event{{Seq: f.seq, At: *before(0), Kind: "wave-opened"}}}, nil
}

// TestWhatHappensWhileAPageIsMadeIsTold: the browser follows from an event on that is in the page.
func TestWhatHappensWhileAPageIsMadeIsTold(t *testing.T) {
	f := &busyFleet{seq: 7}
	if body := shown(New(f), "/hosts").Body.String(); !strings.Contains(body, `data-seq="7"`) || f.seq == 7 {
		t.Errorf("events up to %d, and the page follows from another one than 7:\n%s", f.seq, body)
	}
}

func TestWhatFailsIsSaid(t *testing.T) {
	body, status := failure(errors.New("no route to host"))
	if status != http.StatusBadGateway || body.Body.(problem).Text != "no route to host" {
		t.Errorf("%d %+v", status, body)
	}
}

// TestHowACertificateStands: the overview names those for a person, the list all of them.
func TestHowACertificateStands(t *testing.T) {
	p, _ := small()
	const soon = protocol.CertificateEndsSoon
	for _, c := range []struct {
		kind string
		left time.Duration
		want badge
	}{
		{protocol.CertificateServer, 0, badge{"ended", bad}},
		{protocol.CertificateServer, soon, badge{"ends soon", wait}},
		{protocol.CertificateServer, soon + time.Second, badge{"good", good}},
		{protocol.CertificateAgent, 0, badge{"ended", bad}},
		{protocol.CertificateAgent, soon, badge{"renewed by its agent", good}},
		{protocol.CertificateAgent, soon + time.Second, badge{"good", good}},
	} {
		got := p.ends(&protocol.CertificateView{Kind: c.kind, NotAfter: pki.At(noon.Add(c.left))})
		if got != c.want {
			t.Errorf("%s with %s left: %v, want %v", c.kind, c.left, got, c.want)
		}
	}
}
