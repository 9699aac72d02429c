package cp

import (
	"bytes"
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// A thief with an operator's certificate locks out nobody for ever, and what he did is
// seen and taken back.
func TestARevocationIsOfTodayAndCanBeTakenBack(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	operator, ctx := p.operator(), context.Background()
	far := pki.At(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
	for _, name := range []string{"a", "operator-eve"} {
		if err := operator.Revocations().Add(ctx, name, &far, "for ever"); err != nil {
			t.Fatal(err)
		}
	}
	list, err := operator.Revocations().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Revocations {
		if r.Source == protocol.RevokedLocally && r.NotBefore.After(time.Now().Add(2*pki.ClockSlack)) {
			t.Errorf("%s is revoked until %s", r.Hostname, r.NotBefore)
		}
	}
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	whoami := func() int { return p.send(web, sent{method: "GET", path: "/v1/whoami"}).status }
	if got := whoami(); got != 401 {
		t.Fatalf("revoked: %d", got)
	}
	done, err := operator.Revocations().Undo(ctx, "a", "it was a thief")
	if err != nil || done.Rows != 1 || whoami() != 200 {
		t.Errorf("taken back: %+v %v, then %d", done, err, whoami())
	}
	if _, err := operator.Revocations().Undo(ctx, "a", "again"); status(t, err) != 404 {
		t.Errorf("a second time: %v, want 404", err)
	}
	audit := p.send(p.web(e.operatorCert("jo")), sent{method: "GET", path: "/v1/audit"}).body
	if !strings.Contains(audit, `"unrevoke"`) || !strings.Contains(audit, "it was a thief") ||
		!strings.Contains(audit, "2200-01-01") {
		t.Errorf("not recorded: %s", audit)
	}
}

// A row by hand that refuses nobody looks like one that works, unless it is said.
func TestRowsThatMatchNobodyAreNamed(t *testing.T) {
	e := newEstate(t, "web-01", "web-02", "web-03")
	p := e.serve()
	db, err := sql.Open("sqlite3", "file:"+e.path("state/state.db")+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	want := map[string]string{ // whom it concerns, and who was meant
		"web-01": "host ", "agent-web-02." + p.config().AgentSuffix: "host ", "web-03 ": "nobody web-03",
		"WEB-03":                                 "nobody web-03",
		"Agent-WEB-02." + p.config().AgentSuffix: "nobody web-02", "gone": "unknown ", "operator-jo": "operator ",
	}
	for name := range want {
		if _, err := db.Exec(`INSERT INTO cert_revocations (hostname, not_before) VALUES (?, '2001-01-01')`,
			name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(`INSERT INTO cert_revocations (hostname, not_before) VALUES ('web-02', 'soon')`); err != nil {
		t.Fatal(err)
	}
	operator := p.operator()
	list, err := operator.Revocations().List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Revocations {
		if r.Hostname == "web-02" {
			if r.NotBefore != nil || r.Written != "soon" {
				t.Errorf("an unreadable time: %+v", r)
			}
			continue
		}
		if got := string(r.Concerns) + " " + r.Meant; r.Source == protocol.RevokedLocally && got != want[r.Hostname] {
			t.Errorf("%q concerns %q, want %q", r.Hostname, got, want[r.Hostname])
		}
	}
	p.stop()
	var log bytes.Buffer
	restarted := e.primed(t, func(c *Config) { c.Log = zerolog.New(&log) })
	for range 2 {
		restarted.ticker.wakeRevoked(t.Context())
	}
	for _, line := range []string{`"name":"web-03 ","meant":"web-03"`, `"name":"WEB-03","meant":"web-03"`, `"name":"gone"`} {
		if n := strings.Count(log.String(), line); n != 1 {
			t.Errorf("%s is named %d times in %s", line, n, &log)
		}
	}
	if strings.Contains(log.String(), `"name":"web-01"`) {
		t.Error("a row of a host is complained of")
	}
}
