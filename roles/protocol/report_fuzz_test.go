package protocol

import "testing"

// FuzzParseReport hands over the events of strangers: details of the contract's shape, or an error, for every event.
func FuzzParseReport(f *testing.F) {
	for event, details := range map[string]string{
		EventActivationFailed: `{"phase":"x","exit_code":-1,"stderr_tail":"y","signature":null}`,
		EventRealiseFailed:    `{"closure_hash":"x","reason":"y"}`, EventVerifyMismatch: `{"expected":"x","actual":"y"}`,
		EventStaleTarget: `{"closure_hash":"x","channel_ref":"y","signed_at":"2026-03-01T12:00:00Z",` +
			`"freshness_window_secs":1,"age_secs":-9}`,
		EventOther: `{"kind":"x","detail":{"a":[1,null]}}`, "root-shell": `{}`, EventTrustError: `{"reason":7}`,
	} {
		f.Add(event, []byte(details))
	}
	f.Fuzz(func(t *testing.T, event string, details []byte) {
		read, err := ParseReport(&ReportRequest{Hostname: "a", Event: event, Details: details})
		if err != nil {
			return
		}
		if read.Details == nil || detailTypes[event] == nil {
			t.Fatalf("%q was taken as %T", event, read.Details)
		}
		if _, _, err := evidenceOf(event, read.Details); err != nil {
			t.Logf("what it would sign cannot be written: %v", err)
		}
	})
}
