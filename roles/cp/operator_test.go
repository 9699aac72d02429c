package cp

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
	"nixfleet/store"
)

func TestHoldsAreMadeAndRecorded(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	operator, ctx := p.operator(), context.Background()
	id := e.rolloutID()
	if err := operator.Hold(ctx, id, "pause", "maintenance"); err != nil {
		t.Fatal(err)
	}
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target != nil {
		t.Errorf("a paused rollout dispatched %+v", got.Target)
	}
	why, err := operator.Explain(ctx, "a")
	if err != nil || why.Reason.Code != "paused" || why.Reason.Text == "" || why.Reason.Next == "" {
		t.Errorf("explained %+v %v", why, err)
	}
	list, err := operator.Rollouts(ctx, client.RolloutsQuery{})
	if err != nil || list.Rollouts[0].Hold == nil || *list.Rollouts[0].Hold != "pause by operator-jo: maintenance" {
		t.Errorf("listed %+v %v", list, err)
	}
	if err := operator.Hold(ctx, id, "resume", "done"); err != nil {
		t.Fatal(err)
	}
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target == nil {
		t.Error("a resumed rollout does not dispatch")
	}
	if err := operator.Hold(ctx, id, "cancel", "wrong"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, operator.Hold(ctx, id, "pause", "")); got != 409 {
		t.Errorf("pause of a cancelled rollout: %d, want 409", got)
	}
	if got := status(t, operator.Hold(ctx, strings.Repeat("0", 64), "pause", "")); got != 404 {
		t.Errorf("pause of no rollout: %d, want 404", got)
	}
	if got := status(t, operator.Retry(ctx, "none", "")); got != 404 {
		t.Errorf("retry of no host: %d, want 404", got)
	}
	web := p.web(e.operatorCert("operator-jo"))
	if got := p.send(web, sent{method: "POST", path: "/v1/rollouts/x/pause", body: "{}"}); got.status != 400 {
		t.Errorf("pause of no id: %d, want 400", got.status)
	}
	var seen []protocol.Event
	stop := errors.New("enough")
	err = operator.Events(ctx, client.EventQuery{}, func(ev protocol.Event) error {
		seen = append(seen, ev)
		if ev.Kind == "rollout-cancelled" {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	for _, want := range []protocol.Event{{Kind: "rollout-paused", Actor: "operator-jo", Detail: "maintenance"},
		{Kind: "rollout-resumed", Actor: "operator-jo", Detail: "done"}} {
		found := false
		for _, ev := range seen {
			found = found || ev.Kind == want.Kind && ev.Actor == want.Actor && ev.Detail == want.Detail && ev.RolloutID == id
		}
		if !found {
			t.Errorf("no event %+v in %+v", want, seen)
		}
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].Seq <= seen[i-1].Seq {
			t.Errorf("event %d comes after %d", seen[i].Seq, seen[i-1].Seq)
		}
	}
	// Nothing is told twice to one who resumes.
	last := seen[len(seen)-1].Seq
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_ = operator.Events(short, client.EventQuery{After: last}, func(ev protocol.Event) error {
		t.Errorf("told again: %+v", ev)
		return nil
	})
	if got := p.send(web, sent{method: "GET", path: "/v1/events?after=x"}); got.status != 400 {
		t.Errorf("after=x: %d, want 400", got.status)
	}
}

// A frozen channel gives out no target, says so wherever people look, and outlives a restart; each word is recorded.
func TestAFrozenChannel(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	operator, ctx := p.operator(), t.Context()
	until := time.Now().Add(48 * time.Hour).UTC().Truncate(time.Second)
	if err := operator.Channel("stable").Freeze(ctx, until, "holidays"); err != nil {
		t.Fatal(err)
	}
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target != nil {
		t.Errorf("a frozen channel dispatched %+v", got.Target)
	}
	p.stop()
	p = e.serve()
	operator, a = p.operator(), p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target != nil {
		t.Errorf("after a restart a frozen channel dispatched %+v", got.Target)
	}
	why, err := operator.Explain(ctx, "a")
	if err != nil || why.Reason.Code != "frozen" || why.Reason.Opens == nil || !why.Reason.Opens.Equal(until) {
		t.Errorf("explained %+v %v", why, err)
	}
	channel, err := operator.Channel("stable").Read(ctx)
	if err != nil || channel.Freeze == nil || channel.Freeze.By != "operator-jo" || channel.Freeze.Reason != "holidays" ||
		!channel.Freeze.Until.Equal(until) {
		t.Errorf("the channel is %+v %v", channel, err)
	}
	plan, err := operator.Plan(ctx, nil)
	if err != nil || len(plan.Moves) == 0 || plan.Moves[0].At.Before(until) {
		t.Errorf("planned %+v %v", plan, err)
	}
	for channel, want := range map[string]int{"none": 404, "stable": 400} {
		if got := status(t, operator.Channel(channel).Freeze(ctx, time.Now(), "now")); got != want {
			t.Errorf("freeze of %s until now: %d, want %d", channel, got, want)
		}
	}
	if err := operator.Channel("stable").Thaw(ctx, "back early"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, operator.Channel("stable").Thaw(ctx, "again")); got != 409 {
		t.Errorf("a second thaw: %d, want 409", got)
	}
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target == nil {
		t.Error("a channel that is not frozen any more does not dispatch")
	}
	page, err := operator.Audit(ctx, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, entry := range page.Entries {
		said += entry.Actor + " " + entry.Action + " " + entry.Subject + "\n"
	}
	if !strings.Contains(said, "operator-jo freeze stable\n") || !strings.Contains(said, "operator-jo thaw stable\n") {
		t.Errorf("recorded:\n%s", said)
	}
}

func TestRevokedHostSaysSo(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	operator, ctx := p.operator(), context.Background()
	a, b := p.agent("a"), p.agent("b")
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	p.checkin(b, e.state("b", closureOf("b", 0)), 0)
	past, soon := pki.At(time.Now().Add(-time.Hour)), pki.At(time.Now().Add(time.Second))
	for host, at := range map[string]*pki.Timestamp{"a": &soon, "b": &past} {
		if err := operator.Revocations().Add(ctx, host, at, "stolen"); err != nil {
			t.Fatal(err)
		}
	}
	for host, want := range map[string]bool{"a": true, "b": false} {
		why, err := operator.Explain(ctx, host)
		if err != nil || (why.Reason.Code == codeRevoked) != want {
			t.Errorf("explained %s: %+v %v, revoked: want %t", host, why, err, want)
		}
		if want && !strings.Contains(why.Reason.Next, "mint-token --hostname "+host+" --host-pubkey 'ssh-ed25519 AAAA") {
			t.Errorf("%s is to be let in by %q", host, why.Reason.Next)
		}
	}
	// All views of one host agree.
	plan, err := operator.Plan(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	said := false
	for _, b := range plan.Blocked {
		said = said || b.Host == "a" && b.Reason.Code == codeRevoked
	}
	for _, m := range plan.Moves {
		if m.Host == "a" {
			t.Error("a plan moves a host that is shut out")
		}
	}
	if !said {
		t.Errorf("the plan does not say that a is revoked: %+v", plan.Blocked)
	}
	if detail, err := operator.Host(ctx, "a"); err != nil || detail.Reason.Code != codeRevoked {
		t.Errorf("detail of a: %+v %v", detail, err)
	}
	list, err := operator.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list.Hosts {
		if shut := h.Reason != nil && h.Reason.Code == codeRevoked; shut != (h.Hostname == "a") {
			t.Errorf("listed %s with reason %+v", h.Hostname, h.Reason)
		}
	}
}

func TestEventsArriveWhileTheyHappen(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	dispatched, begun := make(chan struct{}), make(chan struct{}, 100)
	done := make(chan error, 1)
	operator := p.operator()
	go func() {
		done <- operator.Events(ctx, client.EventQuery{}, func(ev protocol.Event) error {
			begun <- struct{}{}
			if ev.Kind == "host-dispatched" {
				close(dispatched)
				return context.Canceled
			}
			return nil
		})
	}()
	<-begun
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	err := <-done
	select {
	case <-dispatched:
	default:
		t.Fatalf("the stream ended: %v", err)
	}
}

func TestTheWebhookWantsItsToken(t *testing.T) {
	e := newEstate(t, "a")
	e.write("webhook", []byte("open sesame\n"))
	p := e.serve(func(c *Config) { c.WebhookTokenFile = e.path("webhook") })
	web := p.web(nil)
	post := func(header map[string]string) int {
		return p.send(web, sent{method: "POST", path: "/v1/webhook", body: "{}", header: header}).status
	}
	for _, wrong := range []map[string]string{nil, {"Authorization": "Bearer open"}, {"Authorization": "Bearer "},
		{"X-Gitlab-Token": "x"}} {
		if got := post(wrong); got != 401 {
			t.Errorf("%v: %d, want 401", wrong, got)
		}
	}
	e.advance(2)
	if got := post(map[string]string{"X-Gitlab-Token": "open sesame"}); got != 202 {
		t.Fatalf("with the token: %d", got)
	}
	p.eventually("the new release is in force", func() bool { return p.inForce().Equal(e.signed) })
	mac := hmac.New(sha256.New, []byte("open sesame"))
	mac.Write([]byte("{}"))
	if got := post(map[string]string{"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil))}); got != 202 {
		t.Errorf("with a signature: %d", got)
	}
	signature := hex.EncodeToString(mac.Sum(nil))
	for _, right := range []map[string]string{
		{"X-Gitea-Signature": signature}, {"X-Forgejo-Signature": signature},
		{"X-Hub-Signature": "sha256=" + signature},                                                  // Bitbucket's
		{"X-Hub-Signature": "sha1=" + signature[:40], "X-Hub-Signature-256": "sha256=" + signature}, // GitHub's
		{"Authorization": "bearer open sesame"}, {"Authorization": "BEARER  open sesame"},
	} {
		if got := post(right); got != 202 && got != 429 { // 429 comes after the question who asks
			t.Errorf("%v: %d, want 202 or 429", right, got)
		}
	}
	mac = hmac.New(sha256.New, []byte("close sesame"))
	mac.Write([]byte("{}"))
	other := hex.EncodeToString(mac.Sum(nil))
	for _, wrong := range []map[string]string{
		{"X-Gitea-Signature": other}, {"X-Gitea-Signature": "sha256=" + signature}, {"X-Gitea-Signature": "x"},
		{"X-Hub-Signature": signature}, {"X-Hub-Signature": "sha1=" + signature[:40]}, {"X-Hub-Signature": "sha256=" + other},
		{"Authorization": "bear open sesame"}, {"Authorization": "bearer"}, {"Authorization": "bearer open"},
		{"Authorization": "open sesame"}, {"X-Hub-Signature-256": "sha256=" + other, "X-Gitea-Signature": signature},
	} {
		if got := post(wrong); got != 401 {
			t.Errorf("%v: %d, want 401", wrong, got)
		}
	}
	for _, wrong := range []string{"sha256=" + hex.EncodeToString(make([]byte, 32)), "sha256=x", "sha256="} {
		if got := post(map[string]string{"X-Hub-Signature-256": wrong, "Authorization": "Bearer x"}); got != 401 {
			t.Errorf("with signature %s: %d", wrong, got)
		}
	}
	// A new token counts at once.
	e.write("webhook", []byte("other"))
	if got := post(map[string]string{"Authorization": "Bearer open sesame"}); got != 401 {
		t.Errorf("with the old token: %d", got)
	}
	limited := false
	for tries := 0; !limited && tries < 1000; tries++ { // however slow they are
		limited = post(map[string]string{"Authorization": "Bearer other"}) == 429
	}
	if !limited {
		t.Error("a flood of announcements is not limited")
	}
	p.stop()
	p = e.serve()
	// It is then a path like any that is not known.
	if got := p.send(p.web(nil), sent{method: "POST", path: "/v1/webhook", body: "{}"}); got.status != 401 {
		t.Errorf("without a token file or a certificate: %d, want 401", got.status)
	}
	if got := p.send(p.web(e.operatorCert("jo")),
		sent{method: "POST", path: "/v1/webhook", body: "{}"}); got.status != 404 {
		t.Errorf("without a token file: %d, want 404", got.status)
	}
}

// report sends an event of a host, signed by key unless that is nil.
func (p *plane) report(c *client.Client, host string, key *pki.PrivateKey, event string, details any) error {
	p.t.Helper()
	_, err := c.Report(context.Background(), p.reportOf(host, key, event, details))
	return err
}

func (p *plane) reportOf(host string, key *pki.PrivateKey, event string, details any) *protocol.ReportRequest {
	p.t.Helper()
	id := p.rolloutID()
	var signer protocol.Signer
	if key != nil {
		signer = key
	}
	doc, err := protocol.SignEvidence(signer, host, &id, event, details)
	if err != nil {
		p.t.Fatal(err)
	}
	return &protocol.ReportRequest{Hostname: host, AgentVersion: "0.0.1", OccurredAt: pki.At(time.Now()), Rollout: &id,
		Event: event, Details: doc}
}

// A failure without a signature does not count where the fleet declares the host's key, though the host was dispatched.
func TestAnUnsignedFailureHaltsNothing_T20(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a, operator := p.agent("a"), p.operator()
	if answer := p.checkin(a, e.state("a", closureOf("a", 0)), 0); answer.Target == nil {
		t.Fatal("not dispatched")
	}
	for _, event := range []string{protocol.EventActivationFailed, protocol.EventVerifyMismatch,
		protocol.EventRollbackTriggered} {
		details := map[string]any{
			protocol.EventActivationFailed:  protocol.ActivationFailed{Phase: "switch"},
			protocol.EventVerifyMismatch:    protocol.VerifyMismatch{Expected: "x", Actual: "y"},
			protocol.EventRollbackTriggered: protocol.Reasoned{Reason: "health-gate: x"},
		}[event]
		if err := p.report(a, "a", nil, event, details); err != nil {
			t.Fatal(err)
		}
		list, err := operator.Rollouts(t.Context(), client.RolloutsQuery{})
		if err != nil || list.Rollouts[0].State != "Executing" {
			t.Errorf("after an unsigned %s: %+v %v", event, list, err)
		}
	}
}

func TestAFailedActivationHaltsTheRollout(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a, operator := p.agent("a"), p.operator()
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	failed := protocol.ActivationFailed{Phase: "switch"}
	// A signature that is not the host's changes nothing.
	if err := p.report(a, "a", e.hostKeys["b"], protocol.EventActivationFailed, failed); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		list, err := operator.Rollouts(context.Background(), client.RolloutsQuery{})
		if err != nil || len(list.Rollouts) != 1 {
			t.Fatalf("%+v %v", list, err)
		}
		return list.Rollouts[0].State
	}
	if got := state(); got != "Executing" {
		t.Errorf("after a forged report the rollout is %s", got)
	}
	if err := p.report(a, "a", e.hostKeys["a"], protocol.EventActivationFailed, failed); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != "Halted" {
		t.Errorf("after a failed activation the rollout is %s", got)
	}
	reports, err := operator.HostReports(context.Background(), "", 2)
	if err != nil || len(reports.Reports) != 2 {
		t.Fatalf("%+v %v", reports, err)
	}
	for i, want := range []string{"verified", "mismatch"} {
		if got := reports.Reports[i].SignatureStatus; got == nil || *got != want {
			t.Errorf("report %d has verdict %v, want %s", i, got, want)
		}
	}
	trace, err := operator.Trace(context.Background(), e.rolloutID())
	if err != nil || len(trace.Events) != 1 {
		t.Fatalf("%+v %v", trace, err)
	}
	if at := trace.Events[0].TerminalAt; at == nil || at.After(time.Now()) {
		t.Errorf("the failed dispatch ended at %v, which is not over yet", at)
	}
	if err := operator.Retry(context.Background(), "a", "mended"); err != nil {
		t.Fatal(err)
	}
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target == nil {
		t.Error("a retry does not offer the target again")
	}
}

func TestReportsThatAreNoneOfTheContract(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	const head = `{"hostname":"a","agentVersion":"1","occurredAt":"2026-03-01T12:15:00Z","rollout":null,`
	for body, want := range map[string]int{
		head + `"event":"other","details":{"kind":"x"}}`:                                   200,
		head + `"event":"renewal-failed","details":{"reason":"x"}}`:                        200,
		head + `"event":"nonsense","details":{}}`:                                          422,
		head + `"event":"other","details":[]}`:                                             422,
		head + `"event":"other","details":null}`:                                           422,
		head + `"event":"activation-failed","details":{}}`:                                 422,
		strings.Replace(head, `"a"`, `"b"`, 1) + `"event":"other","details":{"kind":"x"}}`: 403,
		// The shape is looked at first.
		strings.Replace(head, `"a"`, `"b"`, 1) + `"event":"other","details":{}}`: 422,
	} {
		if got := p.send(web, sent{method: "POST", path: "/v1/agent/report", body: body}); got.status != want {
			t.Errorf("%s: %d, want %d", body, got.status, want)
		} else if want == 200 && !strings.HasPrefix(got.body, `{"eventId":"evt-`) {
			t.Errorf("answered %s", got.body)
		}
	}
}

// TestAHostCannotFillTheViews: what it reports is bounded where it is kept.
func TestAHostCannotFillTheViews(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	long := strings.Repeat("x", 100_000)
	if err := p.confirm(a, "a", p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target); err != nil {
		t.Fatal(err)
	}
	p.checkin(a, e.state("a", closureOf("a", 1)), 0)
	state := e.state("a", long)
	state.Held, state.CurrentGeneration.BootID, state.PendingGeneration = &long, long,
		&protocol.PendingGeneration{ClosureHash: long}
	p.checkin(a, state, 0)
	other := p.reportOf("a", nil, protocol.EventOther, protocol.Other{Kind: "x"})
	other.Rollout = &long
	if _, err := a.Report(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	if got := p.send(p.web(e.operatorCert("jo")), sent{method: "GET", path: "/v1/host-reports"}); len(got.body) > 2000 {
		t.Errorf("a report of a rollout with a long name: %d bytes", len(got.body))
	}
	for i := range 205 {
		failure := protocol.ComplianceFailure{ControlID: fmt.Sprint(i, long), Status: "error", FrameworkArticles: []string{},
			EvidenceCollectedAt: pki.At(time.Now())}
		if err := p.report(a, "a", e.hostKeys["a"], protocol.EventComplianceFailure, failure); err != nil {
			t.Fatal(err)
		}
	}
	operator := p.web(e.operatorCert("operator-jo"))
	hosts := p.send(operator, sent{method: "GET", path: "/v1/hosts"})
	if len(hosts.body) > 5000 || !strings.Contains(hosts.body, `"outstandingComplianceFailures":200,`) {
		t.Errorf("hosts: %d bytes: %.2000s", len(hosts.body), hosts.body)
	}
	reports := p.send(operator, sent{method: "GET", path: "/v1/host-reports?limit=200"})
	if len(reports.body) > 100_000 || strings.Count(reports.body, `"_truncated_":true`) != 32 {
		t.Errorf("reports: %d bytes", len(reports.body))
	}
	events := p.send(operator, sent{method: "GET", path: "/v1/events?follow=false"})
	if len(events.body) > 200_000 {
		t.Errorf("events: %d bytes", len(events.body))
	}
}

func TestComplianceFailuresAreCounted(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	failure := protocol.ComplianceFailure{ControlID: "ssh-root", Status: "non-compliant", FrameworkArticles: []string{},
		EvidenceCollectedAt: pki.At(time.Now())}
	for range 2 {
		if err := p.report(a, "a", e.hostKeys["a"], protocol.EventComplianceFailure, failure); err != nil {
			t.Fatal(err)
		}
	}
	text := p.send(p.web(e.operatorCert("prometheus")), sent{method: "GET", path: "/metrics"})
	if got := metricOf(text.body, `nixfleet_compliance_failure_events_total{control_id="ssh-root",host="a"}`); got != "2" {
		t.Errorf("metric %q in\n%s", got, text.body)
	}
	for _, name := range []string{`nixfleet_cp_build_info{git_commit="test",version="0.0.1"}`,
		"nixfleet_runtime_gate_error_events_total"} {
		if metricOf(text.body, name) == "" {
			t.Errorf("no metric %s", name)
		}
	}
	hosts, err := p.operator().Hosts(context.Background())
	if err != nil || hosts.Hosts[0].OutstandingComplianceFailures != 1 || hosts.Hosts[0].VerifiedEventCount != 2 {
		t.Errorf("host a is shown %+v %v", hosts.Hosts[0], err)
	}
}

func TestMetricLabelsThatHostsChooseAreBounded(t *testing.T) {
	m := newMetrics(&Config{})
	for range 2 * maxControls {
		m.control(pki.NewNonce())
	}
	if len(m.controls) != maxControls || m.control("one more") != "other" ||
		m.control(strings.Repeat("x", 1000)) != "other" {
		t.Errorf("%d labels", len(m.controls))
	}
}

func TestAnAttestedHostIsHealthyAfterALostDatabase(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	at := pki.At(time.Now().Add(-5 * time.Minute).Truncate(time.Second))
	sig, err := protocol.SignAttestation(e.hostKeys["a"], "a", at, e.rolloutID())
	if err != nil {
		t.Fatal(err)
	}
	req := e.state("a", closureOf("a", 1))
	req.LastConfirmedAt, req.AttestationSignature = &at, &sig
	p.checkin(p.agent("a"), req, 0)
	why, err := p.operator().Explain(context.Background(), "a")
	if err != nil || why.State == nil || *why.State != "Soaked" && *why.State != "Converged" {
		t.Errorf("attested host is %+v %v", why, err)
	}
}

// An operator's answer and a check-in are given after the change is on disk. A
// change that cannot be stored is not answered, and is made again once it can.
func TestAChangeThatCannotBeStoredIsForgotten(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	healthy := s.store
	contactOf := func() *contact {
		return &contact{host: "a", o: s.handlers.checkins.observe("a", e.state("a", closureOf("a", 0))),
			snap: s.release.snapshot.Load()}
	}
	// A closed store stands for a disk that takes nothing.
	broken, err := store.Open(t.Context(), store.Config{Path: e.path("broken.db")})
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	s.world.store = broken
	if d, err := s.handlers.checkins.decide(t.Context(), contactOf()); err == nil {
		t.Fatalf("answered %+v although it could not be stored", d.Target)
	}
	if _, err := s.handlers.checkins.decide(t.Context(), contactOf()); err == nil {
		t.Fatal("went on from a state that is not on disk")
	}
	s.world.store = healthy
	d, err := s.handlers.checkins.decide(t.Context(), contactOf())
	if err != nil || d.Target == nil || d.Target.Resent {
		t.Fatalf("once it can be stored: %+v %v", d, err)
	}
	trace, err := healthy.Trace(t.Context(), e.rolloutID())
	if err != nil || len(trace) != 1 || trace[0].State != "pending" {
		t.Errorf("on disk: %+v %v", trace, err)
	}
}

func TestWhoAgentsAre(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	operator := p.web(e.operatorCert("operator-jo"))
	for _, c := range []struct {
		path string
		body any
		want int
	}{
		{checkinPath, e.state("a", "x"), 403},
		{checkinPath, e.state("operator-jo", "x"), 403},
		{"/v1/agent/confirm", &protocol.ConfirmRequest{Hostname: "a",
			Generation: protocol.Generation{ClosureHash: "x", BootID: "b"}}, 403},
		{"/v1/agent/report", p.reportOf("a", nil, protocol.EventOther, protocol.Other{Kind: "x"}), 403},
		{"/v1/agent/renew", &protocol.RenewRequest{CSRPEM: "garbage"}, 400},
		{"/v1/agent/renew", &protocol.RenewRequest{CSRPEM: string(csrOf(t, e.hostKeys["a"], "a"))}, 401},
		{"/v1/agent/confirm", "{}", 422},
	} {
		if got := p.send(operator, sent{method: http.MethodPost, path: c.path, body: c.body}); got.status != c.want {
			t.Errorf("%s for an operator: %d, want %d", c.path, got.status, c.want)
		}
	}
}
