package cp

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// hostile is text that a terminal acts upon: C0, C1, a bidirectional override, an
// invisible character beyond the basic plane.
const hostile = "x\x1b]0;owned\x07\u009b31m\u202emoor\U000e0041 end"

// poison puts hostile text into every text field below v, and makes what may be absent.
func poison(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile)
	case reflect.Pointer:
		if v.IsNil() && v.Type() != reflect.TypeFor[*pki.Timestamp]() && depth < 6 {
			v.Set(reflect.New(v.Type().Elem()))
		}
		if !v.IsNil() {
			poison(v.Elem(), depth+1)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[jsontext.Value]() {
			return
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		poison(v.Index(0), depth+1)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[pki.Timestamp]() {
			return
		}
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				poison(v.Field(i), depth+1)
			}
		}
	}
}

// Whatever a host or an operator writes into any text of the wire: no answer has a
// character that acts on the terminal of whoever reads it raw, and nothing of it is lost.
func TestForeignTextIsVisibleInEveryAnswer(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	req := e.state("a", closureOf("a", 0))
	poison(reflect.ValueOf(req).Elem(), 0)
	// Words of closed lists are refused.
	req.Hostname, req.LastFetchOutcome.Result = "a", "fetch-failed"
	*req.HealthCheckMode = "enforce"
	req.HealthProbes[0].Kind, req.HealthProbes[0].Status = "http", "fail"
	if got := p.send(web, sent{method: "POST", path: "/v1/agent/checkin", body: req}); got.status != 200 {
		t.Fatalf("the check-in: %d %s", got.status, got.body)
	}
	details, err := json.Marshal(map[string]any{"kind": hostile, "detail": hostile})
	if err != nil {
		t.Fatal(err)
	}
	rollout := hostile
	report := &protocol.ReportRequest{
		Hostname: "a", AgentVersion: hostile, OccurredAt: pki.At(time.Now()), Rollout: &rollout,
		Event: protocol.EventOther, Details: details,
	}
	if got := p.send(web, sent{method: "POST", path: "/v1/agent/report", body: report}); got.status != 200 {
		t.Fatalf("the report: %d %s", got.status, got.body)
	}
	operator := p.operator()
	ctx := context.Background()
	if err := operator.Revocations().Add(ctx, hostile, nil, hostile); err != nil {
		t.Fatal(err)
	}
	if err := operator.Hold(ctx, e.rolloutID(), "pause", hostile); err != nil {
		t.Fatal(err)
	}
	shown := 0
	raw := p.web(e.operatorCert("operator-jo"))
	for _, path := range []string{
		"/v1/hosts", "/v1/hosts/a", "/v1/hosts/a/explain", "/v1/host-reports",
		"/v1/rollouts?all=true", "/v1/revocations", "/v1/audit", "/v1/history", "/v1/events?follow=false",
		"/v1/certificates", "/v1/plan",
		"/v1/channels", "/metrics", "/v1/channels/%1b%5b31m%c2%9b",
	} {
		got := p.send(raw, sent{method: "GET", path: path,
			header: map[string]string{"Accept": "application/json"}})
		acts := func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }
		if i := strings.IndexFunc(got.body, acts); i >= 0 {
			t.Errorf("%s has a character that acts, at the end of %q", path, got.body[max(0, i-40):i+1])
		}
		shown += strings.Count(got.body, "owned")
	}
	if shown == 0 {
		t.Error("nothing of it is shown at all")
	}
	list, err := operator.Revocations().List(ctx)
	same := func(r protocol.RevocationView) bool { return r.Hostname == hostile }
	if err != nil || !slices.ContainsFunc(list.Revocations, same) {
		t.Errorf("a name came back changed: %+v %v", list, err)
	}
	if bytes.ContainsAny([]byte(p.log.String()), "\x1b\x07") {
		t.Error("the log has an escape sequence")
	}
}
