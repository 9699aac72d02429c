package protocol

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

const (
	stableID  = "3c5da1d73cca1c7f21990e857f1ce67ba1025443bffac40d135d6425798df95e"
	emptyHash = "12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126"
	// web02Line is the key of host web-02 in the contract's example fleet.
	web02Line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep"
)

// payloadOf is what a host signs of the details.
func payloadOf(t *testing.T, hostname string, rollout *string, event string,
	details jsontext.Value) (payload []byte, signed bool, err error) {
	t.Helper()
	typed, err := ParseDetails(event, details)
	if err != nil {
		t.Fatal(err)
	}
	e, signed, err := evidenceOf(event, typed)
	if err != nil || !signed {
		return nil, signed, err
	}
	payload, err = e.payload(hostname, rollout)
	return payload, true, err
}

// verdictOf judges a report as it came: one that cannot be read is refused before its signature is looked at.
func verdictOf(line *string, r *ReportRequest) (Verdict, bool) {
	parsed, err := ParseReport(r)
	if err != nil {
		return VerdictMalformed, detailTypes[r.Event] != nil
	}
	return VerifyEvidence(line, parsed)
}

func hostKey(t testing.TB, seed byte) (*pki.PrivateKey, string) {
	t.Helper()
	k, err := pki.ParsePrivateKey(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k, pki.FormatHostKey(k.Crypto().Public().(ed25519.PublicKey), "")
}

// TestEvidenceVectors: both signatures of wire.md §7, made and verified.
func TestEvidenceVectors(t *testing.T) {
	key, line := hostKey(t, 0x32)
	if line != web02Line {
		t.Fatalf("key of web-02 is %s", line)
	}
	var checkin CheckinRequest
	if _, err := DecodeStrict(example(t, "checkin"), &checkin); err != nil {
		t.Fatal(err)
	}
	wantPayload := `{"hostname":"web-02","lastConfirmedAt":"2026-03-01T12:20:05.120Z","rolloutId":"` + stableID + `"}`
	if got := AttestationPayload("web-02", *checkin.LastConfirmedAt, stableID); string(got) != wantPayload {
		t.Errorf("attestation payload\n%s, want\n%s", got, wantPayload)
	}
	sig, err := SignAttestation(key, "web-02", *checkin.LastConfirmedAt, stableID)
	if err != nil || sig != *checkin.AttestationSignature {
		t.Errorf("attestation %s, want %s; %v", sig, *checkin.AttestationSignature, err)
	}
	if !VerifyAttestation(line, "web-02", *checkin.LastConfirmedAt, stableID, sig) {
		t.Error("the attestation does not verify")
	}

	var report ReportRequest
	if _, err := DecodeStrict(example(t, "report"), &report); err != nil {
		t.Fatal(err)
	}
	wantPayload = `{"exitCode":null,"hostname":"web-02","phase":"switch-poll-timeout","rollout":"` + stableID +
		`","stderrTailSha256":"` + emptyHash + `"}`
	payload, signed, err := payloadOf(t, "web-02", report.Rollout, report.Event, report.Details)
	if err != nil || !signed || string(payload) != wantPayload {
		t.Errorf("evidence payload %v %v\n%s, want\n%s", signed, err, payload, wantPayload)
	}
	details, err := SignEvidence(key, "web-02", report.Rollout, EventActivationFailed,
		ActivationFailed{Phase: "switch-poll-timeout"})
	if err != nil || string(details) != string(report.Details) {
		t.Errorf("signed details\n%s, want\n%s; %v", details, report.Details, err)
	}
	if v, signed := verdictOf(&line, &report); v != VerdictVerified || !signed {
		t.Errorf("verdict %s, %v", v, signed)
	}
}

// TestAttestationIsBound: neither another host, time nor rollout passes.
func TestAttestationIsBound(t *testing.T) {
	key, line := hostKey(t, 0x32)
	_, other := hostKey(t, 0x31)
	at := pki.At(time.Date(2026, 3, 1, 12, 20, 5, 0, time.UTC))
	sig, err := SignAttestation(key, "web-02", at, stableID)
	if err != nil {
		t.Fatal(err)
	}
	later := pki.At(at.Add(time.Nanosecond))
	for name, ok := range map[string]bool{
		"another key":     VerifyAttestation(other, "web-02", at, stableID, sig),
		"another host":    VerifyAttestation(line, "web-01", at, stableID, sig),
		"another time":    VerifyAttestation(line, "web-02", later, stableID, sig),
		"another rollout": VerifyAttestation(line, "web-02", at, strings.Repeat("0", 64), sig),
		"no signature":    VerifyAttestation(line, "web-02", at, stableID, ""),
		"no key":          VerifyAttestation("", "web-02", at, stableID, sig),
	} {
		if ok {
			t.Errorf("%s: verified", name)
		}
	}
	elsewhere := pki.At(at.In(time.FixedZone("", 7200)))
	if !VerifyAttestation(line, "web-02", elsewhere, stableID, sig) {
		t.Error("the same time in another zone does not verify")
	}
}

// allDetails has one of each event, with every optional detail given.
func allDetails() map[string]any {
	code, tail, at := int32(-11), "unit \"a\" failed\n\x1b[31m/",
		pki.At(time.Date(2026, 3, 1, 12, 0, 0, 100_000, time.UTC))
	return map[string]any{
		EventActivationStarted:        ActivationStarted{"c", "r"},
		EventActivationDeferred:       ActivationDeferred{"c", "r", "kernel", "immediate"},
		EventClosureQuarantined:       ClosureQuarantined{"c", "r", 3, "why"},
		EventActivationFailed:         ActivationFailed{Phase: "switch", ExitCode: &code, StderrTail: &tail},
		EventRealiseFailed:            RealiseFailed{ClosureHash: "c", Reason: "why"},
		EventVerifyMismatch:           VerifyMismatch{Expected: "a", Actual: "b"},
		EventRollbackTriggered:        Reasoned{Reason: "why"},
		EventEnrollmentFailed:         Reasoned{Reason: "why"},
		EventRenewalFailed:            Reasoned{Reason: "why"},
		EventTrustError:               Reasoned{Reason: "why"},
		EventClosureSignatureMismatch: ClosureSignatureMismatch{ClosureHash: "c", StderrTail: tail},
		EventStaleTarget: StaleTarget{ClosureHash: "c", ChannelRef: "r", SignedAt: at, FreshnessWindowSecs: 60,
			AgeSecs: -5},
		EventComplianceFailure: ComplianceFailure{ControlID: "a.1", Status: "error", FrameworkArticles: []string{"nis2:21"},
			EvidenceSnippet: jsontext.Value(`{"b":1.0,"a":[2]}`), EvidenceCollectedAt: at},
		EventRuntimeGateError: RuntimeGateError{Reason: "why", CollectorExitCode: &code, EvidenceCollectedAt: &at,
			ActivationCompletedAt: at},
		EventManifestMissing:      ManifestProblem{RolloutID: "i", Reason: "why"},
		EventManifestVerifyFailed: ManifestProblem{RolloutID: "i", Reason: "why"},
		EventManifestMismatch:     ManifestProblem{RolloutID: "i", Reason: "why"},
		EventOther:                Other{Kind: KindReleaseStale, Detail: jsontext.Value(`{"x":1}`)},
	}
}

// payloads are the signed texts of allDetails, written by hand from the
// contract's table; an event without one is unsigned.
func payloads() map[string]string {
	const times = `"2026-03-01T12:00:00.000100Z"`
	tail := pki.HashHex([]byte(`"unit \"a\" failed\n\u001b[31m/"`))
	snippet := pki.HashHex([]byte(`{"a":[2],"b":1}`))
	return map[string]string{
		EventActivationFailed: `{"exitCode":-11,"hostname":"h","phase":"switch","rollout":null,"stderrTailSha256":"` +
			tail + `"}`,
		EventRealiseFailed:            `{"closureHash":"c","hostname":"h","reason":"why","rollout":null}`,
		EventVerifyMismatch:           `{"actual":"b","expected":"a","hostname":"h","rollout":null}`,
		EventRollbackTriggered:        `{"hostname":"h","reason":"why","rollout":null}`,
		EventClosureSignatureMismatch: `{"closureHash":"c","hostname":"h","rollout":null,"stderrTailSha256":"` + tail + `"}`,
		EventStaleTarget:              `{"ageSecs":-5,"channelRef":"r","closureHash":"c","freshnessWindowSecs":60,"hostname":"h","rollout":null,"signedAt":` + times + `}`,
		EventComplianceFailure: `{"controlId":"a.1","evidenceCollectedAt":` + times + `,"evidenceSnippetSha256":"` +
			snippet + `","frameworkArticles":["nis2:21"],"hostname":"h","rollout":null,"status":"error"}`,
		EventRuntimeGateError: `{"activationCompletedAt":` + times +
			`,"collectorExitCode":-11,"evidenceCollectedAt":` + times + `,"hostname":"h","reason":"why","rollout":null}`,
		EventManifestMissing:      `{"hostname":"h","reason":"why","rollout":null,"rolloutId":"i"}`,
		EventManifestVerifyFailed: `{"hostname":"h","reason":"why","rollout":null,"rolloutId":"i"}`,
		EventManifestMismatch:     `{"hostname":"h","reason":"why","rollout":null,"rolloutId":"i"}`,
	}
}

func TestEveryEvent(t *testing.T) {
	key, line := hostKey(t, 0x32)
	all, want := allDetails(), payloads()
	if len(all) != len(detailTypes) {
		t.Errorf("%d events are tried, there are %d", len(all), len(detailTypes))
	}
	for event, given := range all {
		t.Run(event, func(t *testing.T) {
			details, err := SignEvidence(key, "h", nil, event, given)
			if err != nil {
				t.Fatal(err)
			}
			payload, signed, err := payloadOf(t, "h", nil, event, details)
			if err != nil || string(payload) != want[event] || signed != (want[event] != "") {
				t.Errorf("payload %v %v\n%s, want\n%s", signed, err, payload, want[event])
			}
			report := &ReportRequest{Hostname: "h", Event: event, Details: details}
			if v, ok := verdictOf(&line, report); ok != signed || signed && v != VerdictVerified {
				t.Errorf("verdict %q, %v", v, ok)
			}
			if signed != strings.Contains(string(details), `"signature"`) {
				t.Errorf("signature in %s", details)
			}
			typed, err := ParseDetails(event, details)
			if err != nil {
				t.Fatal(err)
			}
			again, err := pki.Marshal(typed)
			if err != nil || string(again) != string(details) {
				t.Errorf("details %v\n%s, read as\n%s", err, details, again)
			}

			unsigned, err := SignEvidence(nil, "h", nil, event, given)
			if err != nil || strings.Contains(string(unsigned), "signature") {
				t.Errorf("without a key: %s, %v", unsigned, err)
			}
			report.Details = unsigned
			if v, ok := verdictOf(&line, report); ok && v != VerdictUnsigned {
				t.Errorf("without a key: verdict %s", v)
			}
		})
	}
}

func TestAbsentValuesAreNull(t *testing.T) {
	for event, c := range map[string]struct{ details, want string }{
		EventRuntimeGateError: {`{"reason":"x","activation_completed_at":"2026-03-01 12:00:00.5+00"}`,
			`{"activationCompletedAt":"2026-03-01T12:00:00.500Z","collectorExitCode":null,"evidenceCollectedAt":null,"hostname":"h","reason":"x","rollout":"r"}`},
		EventComplianceFailure: {
			`{"control_id":"x","status":"error","framework_articles":[],"evidence_snippet":null,"evidence_collected_at":"2026-03-01T12:00:00Z"}`,
			`{"controlId":"x","evidenceCollectedAt":"2026-03-01T12:00:00Z","evidenceSnippetSha256":"","frameworkArticles":[],"hostname":"h","rollout":"r","status":"error"}`},
		EventActivationFailed: {`{"phase":"p","exit_code":null,"stderr_tail":null}`,
			`{"exitCode":null,"hostname":"h","phase":"p","rollout":"r","stderrTailSha256":"` + emptyHash + `"}`},
	} {
		rollout := "r"
		payload, _, err := payloadOf(t, "h", &rollout, event, jsontext.Value(c.details))
		if err != nil || string(payload) != c.want {
			t.Errorf("%s: %v\n%s, want\n%s", event, err, payload, c.want)
		}
	}
}

// TestSnippetsAreShortened: above 1024 bytes of canonical form a snippet is
// sent and hashed as its size and its first 900 characters.
func TestSnippetsAreShortened(t *testing.T) {
	key, line := hostKey(t, 0x32)
	text := func(characters string) jsontext.Value { return jsontext.Value(`"` + characters + `"`) }
	for _, c := range []struct {
		name    string
		snippet jsontext.Value
		size    int // of the canonical form when it is shortened
	}{
		{"at the bound", text(strings.Repeat("x", 1022)), 0},
		{"one byte more", text(strings.Repeat("x", 1023)), 1025},
		{"characters, not bytes", text(strings.Repeat("é", 600)), 1202},
		{"quotes that grow when they are quoted again", jsontext.Value("[" + strings.Repeat(`"",`, 600) + `""]`), 1804},
	} {
		t.Run(c.name, func(t *testing.T) {
			details, err := SignEvidence(key, "h", nil, EventComplianceFailure,
				ComplianceFailure{FrameworkArticles: []string{}, EvidenceSnippet: c.snippet})
			if err != nil {
				t.Fatal(err)
			}
			var d struct {
				Snippet   jsontext.Value `json:"evidence_snippet"`
				Signature string         `json:"signature"`
			}
			if err := json.Unmarshal(details, &d); err != nil {
				t.Fatal(err)
			}
			if c.size == 0 {
				if string(d.Snippet) != string(c.snippet) {
					t.Errorf("a small snippet became %s", d.Snippet)
				}
			} else {
				var got struct {
					Truncated bool   `json:"_truncated_"`
					Size      int    `json:"_original_size_bytes_"`
					Preview   string `json:"_preview_"`
				}
				if err := json.Unmarshal(d.Snippet, &got); err != nil {
					t.Fatal(err)
				}
				begin := []rune(string(c.snippet))
				if !got.Truncated || got.Size != c.size || got.Preview != string(begin[:min(900, len(begin))]) {
					t.Errorf("shortened to %+v", got)
				}
			}
			report := &ReportRequest{Hostname: "h", Event: EventComplianceFailure, Details: details}
			if v, _ := verdictOf(&line, report); v != VerdictVerified {
				t.Errorf("verdict %s on what was sent", v)
			}
			// A sender that hashes what stands for the snippet and sends it whole.
			whole, err := pki.Marshal(ComplianceFailure{FrameworkArticles: []string{}, EvidenceSnippet: c.snippet,
				Signature: &d.Signature})
			if err != nil {
				t.Fatal(err)
			}
			report.Details = whole
			if v, _ := verdictOf(&line, report); v != VerdictVerified {
				t.Errorf("verdict %s on the whole snippet", v)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	key, line := hostKey(t, 0x32)
	_, other := hostKey(t, 0x31)
	rsa := "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQ== x"
	broken := "ssh-ed25519 AAAA"
	rollout := stableID
	signed, err := SignEvidence(key, "web-02", &rollout, EventVerifyMismatch, VerifyMismatch{Expected: "a", Actual: "b"})
	if err != nil {
		t.Fatal(err)
	}
	var d VerifyMismatch
	if err := json.Unmarshal(signed, &d); err != nil {
		t.Fatal(err)
	}
	sub := func(old, with string) jsontext.Value {
		return jsontext.Value(strings.Replace(string(signed), old, with, 1))
	}
	raw, err := base64.StdEncoding.DecodeString(*d.Signature)
	if err != nil {
		t.Fatal(err)
	}
	// S plus the group order: the same signature in a second encoding.
	order := []byte{0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14}
	second := bytes.Clone(raw)
	carry := 0
	for i := range 32 {
		sum := int(second[32+i]) + carry
		if i < len(order) {
			sum += int(order[i])
		} else if i == 31 {
			sum += 0x10
		}
		second[32+i], carry = byte(sum), sum>>8
	}
	for _, c := range []struct {
		name    string
		line    *string
		host    string
		rollout *string
		details jsontext.Value
		want    Verdict
	}{
		{"as signed", &line, "web-02", &rollout, signed, VerdictVerified},
		{"unknown details besides", &line, "web-02", &rollout, sub(`{"actual"`, `{"z":1,"actual"`), VerdictVerified},
		{"another key", &other, "web-02", &rollout, signed, VerdictMismatch},
		{"another host", &line, "web-01", &rollout, signed, VerdictMismatch},
		{"another rollout", &line, "web-02", nil, signed, VerdictMismatch},
		{"changed details", &line, "web-02", &rollout, sub(`"b"`, `"c"`), VerdictMismatch},
		{"S above the group order", &line, "web-02", &rollout, sub(*d.Signature, base64.StdEncoding.EncodeToString(second)),
			VerdictMismatch},
		{"no signature", &line, "web-02", &rollout, jsontext.Value(`{"expected":"a","actual":"b"}`), VerdictUnsigned},
		{"null signature", &line, "web-02", &rollout, jsontext.Value(`{"expected":"a","actual":"b","signature":null}`),
			VerdictUnsigned},
		{"no key declared", nil, "web-02", &rollout, signed, VerdictNoPubkey},
		{"RSA key declared", &rsa, "web-02", &rollout, signed, VerdictWrongAlgorithm},
		{"broken key declared", &broken, "web-02", &rollout, signed, VerdictMalformed},
		{"signature that is a number", &line, "web-02", &rollout, sub(`"`+*d.Signature+`"`, `1`), VerdictMalformed},
		{"signature without padding", &line, "web-02", &rollout, sub("==", ""), VerdictMalformed},
		{"signature with a line break", &line, "web-02", &rollout,
			sub(*d.Signature, (*d.Signature)[:40]+`\n`+(*d.Signature)[40:]), VerdictMalformed},
		{"signature of 63 bytes", &line, "web-02", &rollout, sub(*d.Signature, base64.StdEncoding.EncodeToString(raw[:63])),
			VerdictMalformed},
		{"repeated detail", &line, "web-02", &rollout, sub(`{"actual"`, `{"actual":"x","actual"`), VerdictMalformed},
		{"details null", &line, "web-02", &rollout, jsontext.Value(`null`), VerdictMalformed},
		{"details that are a list", &line, "web-02", &rollout, jsontext.Value(`[]`), VerdictMalformed},
	} {
		report := &ReportRequest{Hostname: c.host, Rollout: c.rollout, Event: EventVerifyMismatch, Details: c.details}
		got, kind := verdictOf(c.line, report)
		if got != c.want || !kind {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if counts := got.Counts(); counts != (got != VerdictMismatch && got != VerdictMalformed) {
			t.Errorf("%s counts: %v", got, counts)
		}
	}
}

func TestVerifyProbe(t *testing.T) {
	key, line := hostKey(t, 0x31)
	sig, err := key.Sign([]byte(`{"a":1,"b":[2]}`))
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(sig)
	for _, c := range []struct {
		payload, sig, line string
		want               Verdict
	}{
		{"{ \"b\": [2.0],\n \"a\": 1 }\n", text + "\n", line + " root@web-01\n", VerdictVerified},
		{`{"a":1,"b":[3]}`, text, line, VerdictMismatch},
		{`{"a":1,"a":1,"b":[2]}`, text, line, VerdictMalformed},
		{`{"a":1,"b":[2]}`, "", line, VerdictMalformed},
		{`{"a":1,"b":[2]}`, text, "ecdsa-sha2-nistp256 AAAA", VerdictWrongAlgorithm},
	} {
		if got := VerifyProbe([]byte(c.payload), c.sig, c.line); got != c.want {
			t.Errorf("%s by %s: %s, want %s", c.payload, c.line, got, c.want)
		}
	}
}

func TestParseDetailsRefuses(t *testing.T) {
	for _, c := range []struct{ event, details string }{
		{"no-such-event", `{}`},
		{"", `{}`},
		{EventActivationFailed, `{}`},
		{EventActivationFailed, `{"phase":"p","exit_code":"1"}`},
		{EventActivationFailed, `{"phase":"p","exit_code":4294967296}`},
		{EventActivationFailed, `{"phase":"p","phase":"q"}`},
		{EventStaleTarget,
			`{"closure_hash":"c","channel_ref":"r","signed_at":"yesterday","freshness_window_secs":1,"age_secs":1}`},
		{EventComplianceFailure,
			`{"control_id":"c","status":"s","framework_articles":[null],"evidence_collected_at":"2026-03-01T12:00:00Z"}`},
		{EventOther, `[]`},
		{EventOther, `null`},
		{EventOther, ``},
	} {
		if d, err := ParseDetails(c.event, jsontext.Value(c.details)); !errors.Is(err, ErrEvent) {
			t.Errorf("%s %s: %v, %v", c.event, c.details, d, err)
		}
	}
}

func FuzzVerifyEvidence(f *testing.F) {
	for event, d := range allDetails() {
		doc, err := pki.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(event, []byte(doc))
	}
	f.Add(EventComplianceFailure, []byte(`{"evidence_snippet":{"_truncated_":1},"signature":"AAAA"}`))
	line := web02Line
	f.Fuzz(func(t *testing.T, event string, details []byte) {
		report := &ReportRequest{Hostname: "h", Event: event, Details: details}
		if v, _ := verdictOf(&line, report); v == VerdictVerified {
			t.Fatalf("forged: %s %s", event, details)
		}
		if d, err := ParseDetails(event, details); err == nil {
			if _, err := pki.Marshal(d); err != nil {
				t.Fatalf("accepted and cannot be written: %v", err)
			}
		}
	})
}

// TestEvidenceWithIntegersThatNoDoubleHolds: a v1 agent signs the hash of the
// canonical snippet, in which nanoseconds are rounded to a double.
func TestEvidenceWithIntegersThatNoDoubleHolds(t *testing.T) {
	key, line := hostKey(t, 0x32)
	// The canonical form of {"at":1772368000123456789,"n":[-9007199254740993]}.
	canonical := `{"at":1772368000123456800,"n":[-9007199254740992]}`
	payload, err := pki.Marshal(map[string]any{
		"hostname": "web-02", "rollout": nil, "controlId": "c", "status": "error", "frameworkArticles": []string{},
		"evidenceCollectedAt": "2026-03-01T12:00:00Z", "evidenceSnippetSha256": pki.HashHex([]byte(canonical)),
	})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"hostname":"web-02","agentVersion":"0.2.0","occurredAt":"2026-03-01T12:00:00Z","rollout":null,"event":"compliance-failure","details":{
		"control_id":"c","status":"error","framework_articles":[],"evidence_collected_at":"2026-03-01T12:00:00Z",
		"evidence_snippet":{"at":1772368000123456789,"n":[-9007199254740993]},"signature":"` + base64.StdEncoding.EncodeToString(sig) + `"}}`
	var req ReportRequest
	if status, err := DecodeStrict([]byte(body), &req); err != nil {
		t.Fatalf("%d, %v", status, err)
	}
	if _, err := ParseDetails(req.Event, req.Details); err != nil {
		t.Error(err)
	}
	if v, _ := verdictOf(&line, &req); v != VerdictVerified {
		t.Errorf("verdict %s", v)
	}
	// A member with a type of its own is still held against it.
	body = strings.Replace(body, `"control_id":"c"`, `"control_id":9007199254740993`, 1)
	if _, err := DecodeStrict([]byte(body), &req); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDetails(req.Event, req.Details); !errors.Is(err, ErrEvent) {
		t.Errorf("a number for a text: %v", err)
	}
}
