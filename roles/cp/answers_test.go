package cp

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

var updateAnswers = flag.Bool("update", false, "write testdata/answers.golden anew")

// goldenNonce is that of the one token on the signed list.
const goldenNonce = "00000000000000000000000000000001"

// question is a request that the API has an answer to, as it should be sent.
type question struct {
	pattern string // of the table of routes; empty: the path is of no route
	sent
	json bool // the body is JSON
	once bool // of two callers, without faults: more would be too many in a second
}

// asked are a request of every route for host a, and paths that are of none.
func (e *estate) asked(t *testing.T) []question {
	t.Helper()
	id, hold := e.rolloutID(), map[string]any{"reason": "golden"}
	report := protocol.ReportRequest{
		Hostname: "a", AgentVersion: "0.0.1", OccurredAt: pki.At(e.signed), Rollout: &id,
		Event:   protocol.EventActivationStarted,
		Details: jsontext.Value(`{"closure_hash":"` + closureOf("a", 1) + `","channel_ref":"` + id + `"}`),
	}
	confirm := protocol.ConfirmRequest{Hostname: "a", Rollout: id,
		Generation: protocol.Generation{ClosureHash: closureOf("a", 1), BootID: "b0"}}
	first := protocol.BootstrapReport{
		Token: *e.token("new", func(c *pki.Claims) { c.Nonce = goldenNonce }), AgentVersion: "0.0.1",
		OccurredAt: pki.At(e.signed),
		Event: protocol.BootstrapEvent{Event: protocol.EventEnrollmentFailed,
			Details: jsontext.Value(`{"reason":"golden"}`)},
	}
	get := func(pattern, path string) question {
		return question{pattern: pattern, sent: sent{method: "GET", path: path}}
	}
	post := func(pattern, path string, body any) question {
		return question{pattern: pattern, sent: sent{method: "POST", path: path, body: body}, json: true}
	}
	webhook := question{pattern: "/v1/webhook",
		sent: sent{method: "POST", path: "/v1/webhook", body: "{}",
			header: map[string]string{"Authorization": "Bearer wrong"}}}
	announced := webhook
	announced.header, announced.once = map[string]string{"Authorization": "Bearer secret"}, true
	plan := question{pattern: "/v1/plan",
		sent: sent{method: "POST", path: "/v1/plan", body: e.archive(t),
			header: map[string]string{"Content-Type": protocol.TarType}}}
	return []question{
		get("/healthz", "/healthz"),
		get("/readyz", "/readyz"),
		post("/v1/enroll", "/v1/enroll", e.enrolment("new", func(c *pki.Claims) { c.Nonce = goldenNonce })),
		post("/v1/agent/bootstrap-report", "/v1/agent/bootstrap-report", first),
		webhook, announced,
		post("/v1/agent/renew", "/v1/agent/renew", protocol.RenewRequest{CSRPEM: string(csrOf(t, e.hostKeys["a"], "a"))}),
		post("/v1/agent/checkin", "/v1/agent/checkin", e.state("a", closureOf("a", 1))),
		post("/v1/agent/confirm", "/v1/agent/confirm", confirm),
		post("/v1/agent/report", "/v1/agent/report", report),
		get("/v1/agent/closure/{hash}", "/v1/agent/closure/"+strings.Repeat("0", 32)),
		get("/v1/heads/{channel}", "/v1/heads/stable"),
		get("/v1/heads/{channel}", "/v1/heads/none"),
		get("/v1/heads/{channel}/sig", "/v1/heads/stable/sig"),
		get("/v1/heads/{channel}/proof/{host}", "/v1/heads/stable/proof/a"),
		get("/v1/heads/{channel}/proof/{host}", "/v1/heads/stable/proof/none"),
		get("/v1/rollouts/{id}", "/v1/rollouts/"+id),
		get("/v1/rollouts/{id}", "/v1/rollouts/"+strings.Repeat("0", 64)),
		get("/v1/rollouts/{id}", "/v1/rollouts/none"),
		get("/v1/rollouts/{id}/sig", "/v1/rollouts/"+id+"/sig"),
		get("/v1/whoami", "/v1/whoami"),
		get("/v1/hosts", "/v1/hosts"),
		get("/v1/hosts", "/v1/hosts?channel=sta*&order=worst&limit=1"),
		get("/v1/hosts", "/v1/hosts?limit=none"),
		get("/v1/hosts", "/v1/hosts?state=[a"),
		get("/v1/hosts", "/v1/hosts?wave=x"),
		get("/v1/channels", "/v1/channels"),
		get("/v1/channels/{name}", "/v1/channels/stable"),
		get("/v1/channels/{name}", "/v1/channels/none"),
		get("/v1/deferrals", "/v1/deferrals"),
		get("/v1/host-reports", "/v1/host-reports?limit=2"),
		get("/v1/host-reports", "/v1/host-reports?limit=x"),
		get("/v1/rollouts", "/v1/rollouts?all=true"),
		get("/v1/rollouts/{id}/lifecycle", "/v1/rollouts/"+id+"/lifecycle"),
		get("/v1/rollouts/{id}/lifecycle", "/v1/rollouts/"+strings.Repeat("0", 64)+"/lifecycle"),
		get("/v1/rollouts/{id}/lifecycle", "/v1/rollouts/none/lifecycle"),
		get("/v1/rollouts/{id}/trace", "/v1/rollouts/"+id+"/trace"),
		get("/v1/rollouts/{id}/trace", "/v1/rollouts/none/trace"),
		get("/v1/rollouts/{id}/waves", "/v1/rollouts/"+id+"/waves"),
		get("/v1/rollouts/{id}/waves", "/v1/rollouts/"+strings.Repeat("0", 64)+"/waves"),
		get("/v1/rollouts/{id}/waves", "/v1/rollouts/none/waves"),
		get("/v1/history", "/v1/history?limit=3"),
		get("/v1/history", "/v1/history?limit=x"),
		get("/v1/history", "/v1/history?rollout=x"),
		get("/v1/audit", "/v1/audit"),
		get("/v1/audit", "/v1/audit?before=x"),
		get("/metrics", "/metrics"),
		get("/v1/hosts/{name}", "/v1/hosts/a"),
		get("/v1/hosts/{name}", "/v1/hosts/none"),
		get("/v1/certificates", "/v1/certificates"),
		get("/v1/certificates", "/v1/certificates?limit=x"),
		get("/v1/hosts/{name}/explain", "/v1/hosts/a/explain"),
		get("/v1/hosts/{name}/explain", "/v1/hosts/none/explain"),
		get("/v1/plan", "/v1/plan"),
		plan,
		get("/v1/events", "/v1/events?follow=false"),
		get("/v1/events", "/v1/events?follow=false&after=x"),
		get("/v1/events", "/v1/events?follow=false&rollout=x"),
		post("/v1/rollouts/{id}/pause", "/v1/rollouts/"+id+"/pause", hold),
		post("/v1/rollouts/{id}/pause", "/v1/rollouts/none/pause", hold),
		post("/v1/rollouts/{id}/resume", "/v1/rollouts/"+id+"/resume", hold),
		post("/v1/rollouts/{id}/cancel", "/v1/rollouts/"+id+"/cancel", hold),
		post("/v1/revocations", "/v1/revocations", map[string]any{"hostname": "gone", "reason": "golden"}),
		post("/v1/revocations", "/v1/revocations", map[string]any{"hostname": "", "reason": "golden"}),
		get("/v1/revocations", "/v1/revocations"),
		post("/v1/revocations/undo", "/v1/revocations/undo", map[string]any{"hostname": "gone", "reason": "golden"}),
		post("/v1/revocations/undo", "/v1/revocations/undo", map[string]any{"hostname": "never", "reason": "golden"}),
		post("/v1/channels/{name}/freeze", "/v1/channels/none/freeze", map[string]any{
			"until": "2036-03-01T12:00:00Z", "reason": "golden"}),
		post("/v1/channels/{name}/thaw", "/v1/channels/none/thaw", hold),
		post("/v1/channels/{name}/freeze", "/v1/channels/stable/freeze", map[string]any{
			"until": "2020-03-01T12:00:00Z", "reason": "golden"}),
		post("/v1/channels/{name}/freeze", "/v1/channels/stable/freeze", map[string]any{
			"until": pki.At(time.Now().Add(time.Hour)), "reason": "golden"}),
		post("/v1/channels/{name}/thaw", "/v1/channels/stable/thaw", hold),
		post("/v1/channels/{name}/freeze", "/v1/channels/stable/freeze", map[string]any{"until": "tomorrow"}),
		post("/v1/hosts/{name}/retry", "/v1/hosts/a/retry", hold),
		post("/v1/hosts/{name}/retry", "/v1/hosts/none/retry", hold),
		post("/v1/poke", "/v1/poke", nil),
		get("/v1/openapi.json", "/v1/openapi.json"),
		get("", "/v1/none"),
		get("", "/"),
	}
}

// archive is the release as the body of a plan.
func (e *estate) archive(t *testing.T) []byte {
	t.Helper()
	var body bytes.Buffer
	w := tar.NewWriter(&body)
	names, err := filepath.Glob(e.release + "/*")
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Glob(e.release + "/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, manifests...) {
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		within, err := filepath.Rel(e.release, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.ToSlash(within), Mode: 0o644,
			Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return body.Bytes()
}

// fault makes a good request a bad one; nil when the request cannot have it.
type fault struct {
	name string
	make func(question) *question
}

func withHeader(name, value string) func(question) *question {
	return func(q question) *question {
		q.header = maps.Clone(q.header)
		if q.header == nil {
			q.header = map[string]string{}
		}
		q.header[name] = value
		return &q
	}
}

func withBody(body any) func(question) *question {
	return func(q question) *question {
		if !q.json || q.body == nil {
			return nil
		}
		q.body = body
		return &q
	}
}

func withPath(path func(string) string) func(question) *question {
	return func(q question) *question {
		at, query, found := strings.Cut(q.path, "?")
		if q.path = path(at); found {
			q.path += "?" + query
		}
		return &q
	}
}

var faults = []fault{
	{"well-formed", func(q question) *question { return &q }},
	{"asks for JSON", withHeader("Accept", "application/json")},
	{"wrong method", func(q question) *question { q.method = "PUT"; return &q }},
	{"slash at the end", withPath(func(p string) string { return p + "/" })},
	{"two slashes", withPath(func(p string) string { return "/" + p })},
	{"no protocol header", withHeader(protocol.HeaderProtocol, "")},
	{"protocol header is text", withHeader(protocol.HeaderProtocol, "one")},
	{"protocol header is 2", withHeader(protocol.HeaderProtocol, "2")},
	{"wrong content type", func(q question) *question {
		if !q.json {
			return nil
		}
		return withHeader("Content-Type", "text/plain")(q)
	}},
	{"no JSON", withBody("{")},
	{"a JSON number", withBody("7")},
	{"no members", withBody("{}")},
	{"a member twice", withBody(`{"hostname":"a","hostname":"b","reason":"","reason":""}`)},
	{"members of other types", withBody(
		`{"hostname":1,"agentVersion":2,"token":3,"csrPem":4,"reason":5,"event":6,"rollout":7}`)},
	{"too large", withBody(strings.Repeat(" ", protocol.MaxBody+1))},
}

// always are the faults that every question is tried with, by every caller.
var always = faults[:8]

// golden collects answers. A line has the faults and the callers that were
// answered alike.
type golden struct{ bytes.Buffer }

// add writes the answers to a question, by fault and caller.
func (g *golden) add(plane string, q question, answers map[string]map[string]string) {
	alike := map[string][]string{} // faults, by what all callers were told
	var blocks []string
	for _, f := range faults {
		fault := f.name
		if answers[fault] == nil {
			continue
		}
		callers := map[string][]string{}
		for _, caller := range slices.Sorted(maps.Keys(answers[fault])) {
			answer := answers[fault][caller]
			callers[answer] = append(callers[answer], caller)
		}
		block := ""
		for _, answer := range slices.Sorted(maps.Keys(callers)) {
			block += fmt.Sprintf("  %s: %s\n", strings.Join(callers[answer], ", "), answer)
		}
		if alike[block] == nil {
			blocks = append(blocks, block)
		}
		alike[block] = append(alike[block], fault)
	}
	for _, block := range blocks {
		where := fmt.Sprintf("%s | %s %s | %s |", plane, q.method, q.path, strings.Join(alike[block], ", "))
		for line := range strings.Lines(block) {
			fmt.Fprintf(g, "%s%s", where, line[1:])
		}
	}
}

// varies are the parts of an answer that differ from run to run.
var varies = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?`), "TIME"},
	{regexp.MustCompile(`(not JSON|unexpected shape): [^\n]*`), "$1"},       // the decoder's own words
	{regexp.MustCompile(`"(text|next)":"(?:[^"\\]|\\.)*"`), `"$1":"WORDS"`}, // of reasons, which are roles/rollout's
	{regexp.MustCompile(`evt-\d+-[0-9a-z]{8}`), "EVENT"},
	{regexp.MustCompile(`[0-9a-f]{64}`), "HASH"},
	{regexp.MustCompile(`-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----`), "CERTIFICATE"},
	{regexp.MustCompile(`/[^ "]*/releases\b`), "RELEASES"},
	{regexp.MustCompile(`"seq":\d+|id: \d+`), "SEQ"},
	{regexp.MustCompile(`"(nextCheckinSecs)":\d+`), `"$1":SECS`},
	{regexp.MustCompile(`"signature":"[^"]*"`), `"signature":"SIGNATURE"`},
}

// told is an answer in one line.
func told(a answer) string {
	line := fmt.Sprint(a.status)
	for _, name := range []string{"Content-Type", "Retry-After", "Allow", "Connection", "Cache-Control",
		"Preference-Applied"} {
		if v := a.header.Get(name); v != "" {
			line += fmt.Sprintf(" %s=%s", name, v)
		}
	}
	if a.header.Get("ETag") != "" {
		line += " ETag"
	}
	switch kind := a.header.Get("Content-Type"); {
	case kind == "application/octet-stream":
		return line + fmt.Sprintf(" %d bytes", len(a.body))
	case strings.HasPrefix(kind, "text/plain; version="):
		return line + " metrics"
	case strings.HasPrefix(a.body, `{"components":`):
		return line + " OpenAPI"
	case a.body == "":
		return line
	}
	body := jsontext.Value(a.body)
	if a.header.Get("Content-Type") == "application/json" && body.Canonicalize() == nil {
		a.body = string(body) // maps have no order
	}
	return line + fmt.Sprintf(" %.400q", scrubbed(a.body))
}

func scrubbed(body string) string {
	body = strings.ReplaceAll(body, `\n`, " ")
	for _, v := range varies {
		body = v.pattern.ReplaceAllString(body, v.with)
	}
	return body
}

// goldenPlanes are control planes in the states that answers depend on.
func goldenPlanes(e *estate) []struct {
	name   string
	change func(*Config)
	faults []fault
} {
	return []struct {
		name   string
		change func(*Config)
		faults []fault
	}{
		{"ready", func(*Config) {}, faults},
		{"strict", func(c *Config) { c.Strict = true }, always},
		{"open to agents", func(c *Config) { c.OpenReads = true }, faults[:2]},
		{"without a database", func(c *Config) { c.DBPath = "" }, slices.Concat(faults[:2], faults[9:10])},
		{"without an issuing CA", func(c *Config) { c.FleetCACert, c.FleetCAKey = "", "" }, faults[:2]},
		{"not ready", func(c *Config) { c.Source = e.path("empty") }, always},
	}
}

// TestAnswers holds statuses, bodies and the order of checks of the whole API
// (contracts/wire.md §1, §3 to §9) to what is recorded: every route by every
// kind of caller with every fault, on control planes in every state. Each answer is
// also held to the OpenAPI document.
func TestAnswers(t *testing.T) {
	e := newEstate(t, "a", "b", "gone", "new")
	e.nonces = &fleet.BootstrapNonces{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1},
		BootstrapNonces: []fleet.BootstrapNonce{
			{Nonce: goldenNonce, Hostname: "new", ExpiresAt: pki.At(time.Now().Add(time.Hour).Truncate(time.Second))}},
	}
	e.publish()
	e.write("webhook.token", []byte("secret\n"))
	e.write("empty/none", nil)
	stranger := generate(t, pki.AlgorithmEd25519)
	var g golden
	described := e.serve(func(c *Config) { c.StateDir = e.path("state described"); c.DBPath = c.StateDir + "/state.db" })
	doc := described.documented(described.web(e.operatorCert("operator-jo")))
	described.stop()
	for _, plane := range goldenPlanes(e) {
		started := time.Now()
		p := e.serve(plane.change, func(c *Config) {
			c.StateDir = e.path("state of " + plane.name)
			if c.DBPath != "" {
				c.DBPath = c.StateDir + "/state.db"
			}
			c.WebhookTokenFile, c.MaxRate, c.MaxSourceRate = e.path("webhook.token"), maxRate, maxRate
		})
		long := time.Now().Add(-time.Hour)
		callers := map[string]*http.Client{
			"nobody": p.web(nil), "operator": p.web(e.operatorCert("operator-jo")), "host": p.web(e.agentCert("a", long)),
			"other host":            p.web(e.agentCert("b", long)),
			"host with another key": p.web(e.certFor("a", stranger, long, 12*time.Hour)),
		}
		p.eventually("there was a tick, which /healthz tells", func() bool {
			return !strings.Contains(p.send(callers["nobody"], sent{method: "GET", path: "/healthz"}).body, "null")
		})
		if plane.name == "ready" {
			if got := p.send(callers["operator"],
				sent{method: "POST", path: "/v1/revocations",
					body: map[string]any{"hostname": "gone", "reason": "x"}}); got.status != 204 {
				t.Fatal(got)
			}
			callers["revoked host"] = p.web(e.agentCert("gone", long))
		}
		for _, q := range e.asked(t) {
			g.add(plane.name, q, p.ask(doc, q, plane.faults, callers))
		}
		p.stop()
		t.Logf("%s: %s", plane.name, time.Since(started).Round(time.Millisecond))
	}
	for path, methods := range doc.Paths {
		for method := range methods {
			// There is no cache here to read a narinfo of.
			if row := strings.ToUpper(method) + " " + path; !doc.answered[row] && path != "/v1/agent/closure/{hash}" {
				t.Errorf("%s was never answered as its document says", row)
			}
		}
	}
	e.handshakes(t, &g)
	got := scrubbed(g.String())
	const file = "testdata/answers.golden"
	if *updateAnswers {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, string(want), got)
}

// ask sends a question with each fault as each caller, always in the same order:
// some answers depend on those before.
func (p *plane) ask(doc *apiDocument, q question, faults []fault,
	callers map[string]*http.Client) map[string]map[string]string {
	p.t.Helper()
	out := map[string]map[string]string{}
	for _, f := range faults {
		bad := f.make(q)
		if bad == nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(callers)) {
			few := q.once || q.pattern == "/v1/agent/bootstrap-report"
			if f.name == "too large" && name != q.reader() || few && name != "nobody" && name != "operator" ||
				q.once && f.name != faults[0].name {
				continue
			}
			if out[f.name] == nil {
				out[f.name] = map[string]string{}
			}
			got := p.send(callers[name], bad.sent)
			doc.holds(p.t, question{pattern: q.pattern, sent: bad.sent}, got)
			out[f.name][name] = told(got)
		}
	}
	return out
}

// reader is a caller whose body is read to its end: to others the answer comes
// early, and may break the connection while they still write.
func (q question) reader() string {
	if strings.HasPrefix(q.path, "/v1/agent") && q.pattern != "/v1/agent/bootstrap-report" {
		return "host"
	}
	return "operator"
}

// handshakes are the callers whom TLS itself turns away.
func (e *estate) handshakes(t *testing.T, g *golden) {
	p := e.serve()
	elsewhere, _, err := pki.NewFleetRoot("another root", time.Now().Add(-time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key := generate(t, pki.AlgorithmP256)
	foreign, err := elsewhere.IssueOperator("operator-jo", key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*tls.Certificate{
		"expired host": e.certFor("a", e.hostKeys["a"], time.Now().Add(-2*time.Hour), time.Hour),
		"stranger":     pairOf(t, foreign, key),
	} {
		roots := x509.NewCertPool()
		roots.AddCert(e.root.Cert)
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{
			RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return cert, nil
			},
		})
		if err == nil {
			// The client's side of TLS 1.3 is done before the server has judged.
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil {
			t.Errorf("the handshake of %s succeeds", name)
		}
	}
	fmt.Fprintln(g, "ready | any | any | expired host, stranger: no handshake")
}

// compare names the lines that differ.
func compare(t *testing.T, want, got string) {
	t.Helper()
	had, have := strings.Split(want, "\n"), strings.Split(got, "\n")
	differ := 0
	for _, line := range had {
		if !slices.Contains(have, line) && differ < 20 {
			t.Errorf("no more: %s", line)
			differ++
		}
	}
	for _, line := range have {
		if !slices.Contains(had, line) && differ < 40 {
			t.Errorf("new:     %s", line)
			differ++
		}
	}
	if differ == 0 && want != got {
		t.Error("the answers come in another order")
	}
}
