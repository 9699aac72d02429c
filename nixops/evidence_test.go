package nixops_test

import (
	"errors"
	"testing"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

func testEvidence(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	if _, err := r.host.CollectEvidence(t.Context()); !errors.Is(err, nixops.ErrNoCollector) {
		t.Errorf("without a collector: %v", err)
	}
	const doc = `{"timestamp":"2026-03-01T12:00:00Z","controls":[]}`
	for _, exit := range []int{0, 3} {
		r.collector(doc, exit)
		got, err := r.host.CollectEvidence(t.Context())
		if err != nil || got.ExitCode != exit || string(got.Document) != doc {
			t.Errorf("collected %d %s, %v; want exit %d", got.ExitCode, got.Document, err, exit)
		}
	}
}
