package cp

import (
	"strings"
	"testing"
)

func TestATraceIsLoggedWithWhatAnOperatorDid(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	web := p.web(e.operatorCert("operator-ci"))
	got := p.send(web, sent{method: "POST", path: "/v1/rollouts/" + e.rolloutID() + "/pause",
		body:   map[string]string{"reason": "maintenance"},
		header: map[string]string{"traceparent": "00-" + trace + "-" + span + "-01"}})
	if got.status != 204 {
		t.Fatal(got)
	}
	found := false
	for line := range strings.Lines(p.log.String()) {
		found = found || strings.Contains(line, "operator action") && strings.Contains(line, `"trace_id":"`+trace+`"`) &&
			strings.Contains(line, `"span_id":"`+span+`"`)
	}
	if !found {
		t.Errorf("no trace in the log:\n%s", p.log)
	}
}

// TestTraceParents has the cases of the W3C's recommendation, chapter 3.2.2.
func TestTraceParents(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for value, want := range map[string]bool{
		"00-" + trace + "-" + span + "-01":                      true,
		"cc-" + trace + "-" + span + "-01-what-comes":           true,
		"00-" + trace + "-" + span + "-01-more":                 false,
		"ff-" + trace + "-" + span + "-01":                      false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01":    false,
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01":   false,
		"00-" + strings.ToUpper(trace) + "-" + span + "-01":     false,
		"00-" + trace[:31] + "-" + span + "-01":                 false,
		"00-" + strings.Repeat("\x1b", 32) + "-" + span + "-01": false,
		"": false, "00": false, "00-" + strings.Repeat("a", 600): false,
	} {
		if _, _, ok := traceOf([]string{value}); ok != want {
			t.Errorf("%q: %v", value, ok)
		}
	}
}
