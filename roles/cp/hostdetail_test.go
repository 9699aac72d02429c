package cp

import (
	"context"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// TestAHostIsKnownFromAfar: what a person would log in for is in one answer: why it failed and with what log, what its
// agent is at since when, which probe fails, what it runs since when, and when its certificate ends.
func TestAHostIsKnownFromAfar(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	ctx, a, operator := context.Background(), p.agent("a"), p.operator()
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if err := p.confirm(a, "a", target); err != nil {
		t.Fatal(err)
	}
	state := e.state("a", closureOf("a", 1))
	mode, why := "permissive", "connection refused"
	state.HealthCheckMode = &mode
	state.HealthProbes = []protocol.ProbeResult{
		{Name: "web", Kind: protocol.ProbeHTTP, Status: protocol.ProbeFail, FailureReason: &why},
		{Name: "db", Kind: protocol.ProbeTCP, Status: protocol.ProbePass},
	}
	p.checkin(a, state, 0)
	got, err := operator.Host(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if r := got.Host.Running; r == nil || r.Commit != strings.Repeat("ab", 20) || r.Since == nil {
		t.Errorf("it runs %+v, want the commit of the release since its confirm", r)
	}
	if got.Host.Wave == nil || *got.Host.Wave != 0 || !got.Host.Canary || got.Waves != 2 || got.Host.Since == nil {
		t.Errorf("wave %v of %d, canary %t, since %v", got.Host.Wave, got.Waves, got.Host.Canary, got.Host.Since)
	}
	if got.Agent == nil || len(got.Agent.Probes) != 2 || *got.Agent.Probes[0].FailureReason != why {
		t.Errorf("its agent says %+v", got.Agent)
	}
	if c := got.Certificate; c == nil || c.Name != "a" || !c.NotAfter.After(time.Now()) {
		t.Errorf("certificate %+v", c)
	}
	if len(got.Dispatches) != 1 || got.Dispatches[0].State != "confirmed" || got.Dispatches[0].TerminalAt == nil {
		t.Errorf("dispatches %+v", got.Dispatches)
	}
	if b, err := operator.Host(ctx, "b"); err != nil || b.Host.Canary || b.Agent != nil || b.Host.Running != nil {
		t.Errorf("a host that was never heard of: %+v %v", b, err)
	}
}

// TestTroubleOfAHostIsShouted: a boot default that is not what was confirmed, and a host that cannot begin, are in the
// list, in explain and in the detail.
func TestTroubleOfAHostIsShouted(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	ctx, a, operator := context.Background(), p.agent("a"), p.operator()
	other, why := closureOf("a", 7), "its journal cannot be written"
	for want, change := range map[string]func(*protocol.CheckinRequest){
		"a reboot starts " + other: func(r *protocol.CheckinRequest) {
			r.Boot = &protocol.BootWord{Loader: "systemd-boot", Next: &other, Expected: closureOf("a", 1)}
		},
		why: func(r *protocol.CheckinRequest) { r.CannotBegin = &why },
		"": func(r *protocol.CheckinRequest) {
			r.Boot = &protocol.BootWord{Loader: "systemd-boot", Unknown: "nobody knows"}
		},
	} {
		state := e.state("a", closureOf("a", 1))
		change(state)
		p.checkin(a, state, 0)
		x, err := operator.Explain(ctx, "a")
		if err != nil || !strings.Contains(x.Reason.Text, want) || strings.Contains(x.Reason.Text, "BUT") != (want != "") {
			t.Errorf("%q: explain says %+v, %v", want, x, err)
		}
		got, err := operator.Host(ctx, "a")
		if err != nil || (got.Host.Trouble != nil) != (want != "") || got.Agent == nil ||
			got.Host.Trouble != nil && !strings.Contains(*got.Host.Trouble, want) {
			t.Errorf("%q: detail says %+v, %v", want, got, err)
		}
		if want == "" && (got.Agent.Boot == nil || got.Agent.Boot.Unknown != "nobody knows") {
			t.Errorf("detail says %+v", got.Agent.Boot)
		}
	}
}

// TestAFailureIsToldWithItsLog: the reports of one failed activation are one failure with cause, exit code and log.
func TestAFailureIsToldWithItsLog(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	ctx, a, operator := context.Background(), p.agent("a"), p.operator()
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	for _, r := range []struct{ event, details string }{
		{protocol.EventActivationFailed,
			`{"phase":"switch","exit_code":4,"stderr_tail":"starting web\nexit 4: some unit failed\n"}`},
		{protocol.EventRollbackTriggered, `{"reason":"health-gate: units failed: [web.service]"}`},
	} {
		if _, err := a.Report(ctx, &protocol.ReportRequest{Hostname: "a", AgentVersion: "1", OccurredAt: pki.At(time.Now()),
			Rollout: &target.RolloutID, Event: r.event, Details: []byte(r.details)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := operator.Host(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	f := got.Failure
	if f == nil || f.ExitCode == nil || *f.ExitCode != 4 || f.Log == nil ||
		!strings.Contains(*f.Log, "exit 4: some unit") ||
		f.Cause != "health-gate: units failed: [web.service]" || f.Verdict == nil {
		t.Fatalf("failure %+v", f)
	}
	if len(got.Reports) != 2 || got.Reports[0].Event != protocol.EventRollbackTriggered {
		t.Errorf("reports %+v", got.Reports)
	}
}

// TestAStuckHostIsSaidToBeStuck: nothing to do is not the word for a host that has been at one thing for long.
func TestAStuckHostIsSaidToBeStuck(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	ctx, a, operator := context.Background(), p.agent("a"), p.operator()
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	for minutes, stuck := range map[int]bool{1: false, 10: true} {
		state, since := e.state("a", closureOf("a", 0)), pki.At(time.Now().Add(-time.Duration(minutes)*time.Minute))
		state.Phase = &protocol.Phase{Name: protocol.PhaseFetching, Since: &since}
		p.checkin(a, state, 0)
		why, err := operator.Explain(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(why.Reason.Text, "its agent says that it is fetching since") {
			t.Errorf("after %d minutes: %q", minutes, why.Reason.Text)
		}
		if got := strings.Contains(why.Reason.Next, "nixfleet agent status"); got != stuck {
			t.Errorf("after %d minutes, next: %q", minutes, why.Reason.Next)
		}
	}
}

// TestCertificatesAreListedByTheirEnd: a fleet whose CA ends unnoticed ends with it.
func TestCertificatesAreListedByTheirEnd(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	ctx, operator := context.Background(), p.operator()
	got, err := operator.Certificates(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for i, c := range got.Certificates {
		kinds[c.Kind]++
		if i > 0 && c.NotAfter.Before(got.Certificates[i-1].NotAfter.Time) {
			t.Errorf("%s %s ends before the one in front of it", c.Kind, c.Name)
		}
	}
	for _, kind := range []string{protocol.CertificateServer, protocol.CertificateIssuing, protocol.CertificateClientCA,
		protocol.CertificateOperator, protocol.CertificateAgent} {
		if kinds[kind] == 0 {
			t.Errorf("no certificate of kind %s: %v", kind, kinds)
		}
	}
	if got.Agents != 1 {
		t.Errorf("%d agents", got.Agents)
	}
	if none, err := operator.Certificates(ctx, 0); err != nil || none.Agents != 1 || len(none.Certificates) !=
		len(got.Certificates)-1 {
		t.Errorf("without agents: %+v %v", none, err)
	}
	metrics := p.send(p.web(e.operatorCert("operator-jo")), sent{method: "GET", path: "/metrics"}).body
	if !strings.Contains(metrics, `nixfleet_certificate_not_after_timestamp_seconds{kind="issuing-ca"`) {
		t.Error("no metric of the end of the issuing CA")
	}
}
