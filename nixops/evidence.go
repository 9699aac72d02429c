package nixops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nixfleet/nixops/disk"
)

const (
	// CollectorUnit gathers compliance evidence; the host's own modules bring it.
	CollectorUnit = "compliance-evidence-collector.service"
	evidencePath  = "/var/lib/nixfleet-compliance/evidence.json"
	maxEvidence   = 1 << 20
	// collectTime bounds the run of the collector.
	collectTime = 120 * time.Second
)

// Evidence is what the collector left behind.
type Evidence struct {
	ExitCode int
	Document []byte // of evidence.json; nil when there is none
}

func (m *machine) CollectEvidence(ctx context.Context) (Evidence, error) {
	exit, err := m.super.collect(ctx)
	if err != nil {
		return Evidence{}, fmt.Errorf("collect evidence: %w", err)
	}
	doc, err := disk.ReadLinked(m.root+evidencePath, maxEvidence)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Evidence{}, fmt.Errorf("collect evidence: %w", err)
	}
	return Evidence{ExitCode: exit, Document: doc}, nil
}

func exitOf(err error) (int, error) {
	if failed, ok := errors.AsType[*commandError](err); ok && failed.exitCode() >= 0 {
		return failed.exitCode(), nil
	}
	return 0, err
}

func (s *systemd) collect(ctx context.Context) (int, error) {
	state, err := s.activeState(ctx, CollectorUnit)
	if err != nil {
		return 0, err
	}
	if state == "not-found" {
		return 0, ErrNoCollector
	}
	_, err = command{path: "systemctl", args: []string{"start", "--wait", "--", CollectorUnit},
		timeout: collectTime}.run(ctx)
	return exitOf(err)
}

// collect runs the program of the unit's name beside the lists of units, where
// there is one.
func (p *processes) collect(ctx context.Context) (int, error) {
	program := p.dir + "/" + CollectorUnit
	if !disk.Exists(program) {
		return 0, ErrNoCollector
	}
	_, err := command{path: program, timeout: collectTime}.run(ctx)
	return exitOf(err)
}

func (l *launchd) collect(context.Context) (int, error) {
	return 0, ErrNoCollector
}
