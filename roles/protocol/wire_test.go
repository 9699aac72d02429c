package protocol

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

func example(t testing.TB, name string) []byte {
	t.Helper()
	doc, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestWireExamples: the contract's examples are read and written again without
// a difference, so that no member is lost or added.
func TestWireExamples(t *testing.T) {
	for name, v := range map[string]any{
		"checkin": new(CheckinRequest), "checkin-answer": new(CheckinResponse), "confirm": new(ConfirmRequest),
		"report": new(ReportRequest), "hosts": new(HostsResponse),
	} {
		doc := example(t, name)
		if status, err := DecodeStrict(doc, v); err != nil {
			t.Errorf("%s: %d, %v", name, status, err)
			continue
		}
		want, err := pki.Canonicalize(doc)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pki.Marshal(v); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\nread    %s\nwritten %s", name, err, want, got)
		}
	}
}

// TestV1AgentsPeculiarities: what agents in the field send is read.
func TestV1AgentsPeculiarities(t *testing.T) {
	target := `"lastEvaluatedTarget":{"closureHash":"c","channelRef":"r","evaluatedAt":"2026-03-01T12:40:00+00:00","rolloutId":"r","signedAt":"2026-03-01 12:40:00.5Z","freshnessWindowSecs":0},`
	doc := strings.Replace(string(example(t, "checkin")), `{"hostname"`,
		`{`+target+`"lastFetchOutcome":null,"hostname"`, 1)
	var r CheckinRequest
	if status, err := DecodeStrict([]byte(doc), &r); err != nil {
		t.Fatalf("%d, %v", status, err)
	}
	if last := r.LastEvaluatedTarget; last == nil || last.WaveIndex != nil || last.FreshnessWindowSecs != 0 ||
		last.SignedAt.Nanosecond() != 5e8 {
		t.Errorf("target %+v", r.LastEvaluatedTarget)
	}
	if r.Phase != nil || r.RebootPending != nil {
		t.Error("a v1 agent has no phase")
	}
}

func TestWrittenMembers(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 120_000_000, time.UTC)
	wave := uint32(0)
	for _, c := range []struct {
		v    any
		want string
	}{
		// Lists are always written, what is N is null, what is O is left out.
		{CheckinRequest{},
			`{"agentVersion":"","currentGeneration":{"bootId":"","closureHash":""},"healthProbes":[],"hostname":""}`},
		{CheckinResponse{NextCheckinSecs: 60, Held: true}, `{"nextCheckinSecs":60}`},
		{ReportRequest{OccurredAt: pki.At(at), Details: []byte(`{}`)},
			`{"agentVersion":"","details":{},"event":"","hostname":"","occurredAt":"2026-03-01T12:00:00.120Z","rollout":null}`},
		// Wave 0 is a wave.
		{Target{WaveIndex: &wave, EvaluatedAt: pki.At(at), SignedAt: pki.At(at)},
			`{"channelRef":"","closureHash":"","evaluatedAt":"2026-03-01T12:00:00.120Z","freshnessWindowSecs":0,"rolloutId":"","signedAt":"2026-03-01T12:00:00.120Z","waveIndex":0}`},
		// Read endpoints write +00:00 (wire.md §9).
		{Whoami{CN: "x", IssuedAt: Offset(at)}, `{"cn":"x","issuedAt":"2026-03-01T12:00:00.120+00:00"}`},
		{Lifecycle{RolloutID: "x"}, `{"rolloutId":"x","supersededAt":null,"supersededBy":null,"terminalAt":null}`},
		{Trace{RolloutID: "x"}, `{"events":[],"rollout_id":"x"}`},
		{RolloutsResponse{}, `{"rollouts":[]}`},
		{TraceTime{Offset(at)}, `"2026-03-01T12:00:00.120+00:00"`},
	} {
		if got, err := pki.Marshal(c.v); err != nil || string(got) != c.want {
			t.Errorf("%T: %v\n%s, want\n%s", c.v, err, got, c.want)
		}
	}
}

// TestTraceTimes_C1: both forms of a time that exist in the field are the same
// time.
func TestTraceTimes_C1(t *testing.T) {
	event := func(at string) []byte {
		return []byte(`{"host":"h","channel":"c","wave":0,"targetClosureHash":"t","targetChannelRef":"r","dispatchedAt":` +
			at + `,"terminalState":null,"terminalAt":"2026-03-01T12:06:00+00:00"}`)
	}
	want := time.Date(2026, 3, 1, 12, 0, 5, 0, time.UTC)
	for _, at := range []string{`"2026-03-01 12:00:05"`, `"2026-03-01T12:00:05Z"`, `"2026-03-01T13:00:05+01:00"`,
		`"2026-03-01 12:00:05.000+00:00"`} {
		var e TraceEvent
		if err := pki.Decode(event(at), &e); err != nil || !e.DispatchedAt.Equal(want) {
			t.Errorf("%s: %s, %v", at, e.DispatchedAt, err)
		}
		if !e.TerminalAt.Equal(want.Add(355 * time.Second)) {
			t.Errorf("terminal at %s", e.TerminalAt)
		}
	}
	for _, at := range []string{`"2026-03-01"`, `"2026-03-01T12:00:05"`, `"2026-13-01 12:00:05"`, `5`, `null`} {
		if err := pki.Decode(event(at), new(TraceEvent)); err == nil {
			t.Errorf("%s was taken for a time", at)
		}
	}
}

func TestProofOfHead(t *testing.T) {
	entry := fleet.HostEntry{Hostname: "web-01",
		TargetClosure: "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11"}
	tree := pki.NewTree([][]byte{fleet.Leaf(entry)})
	head := &fleet.Head{Channel: "edge", HostSetRoot: tree.Root(), HostCount: 1}
	var p Proof
	answer := `{"leaf":{"hostname":"web-01", "waveIndex":0, "targetClosure":"` + entry.TargetClosure +
		`"},"index":0,"path":[]}`
	if _, err := DecodeStrict([]byte(answer), &p); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Entry(head, "web-01"); err != nil || got != entry {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := p.Entry(head, "web-02"); !errors.Is(err, fleet.ErrNotNamed) {
		t.Errorf("for another host: %v", err)
	}
}
