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
	// CollectorUnit is the unit that gathers compliance evidence. The host's own modules define it.
	CollectorUnit = "compliance-evidence-collector.service"
	evidencePath  = "/var/lib/nixfleet-compliance/evidence.json"
	maxEvidence   = 1 << 20
	// collectTime bounds one run of the collector.
	collectTime = 120 * time.Second
)

// Evidence is the result of one run of the collector.
type Evidence struct {
	ExitCode int
	Document []byte // content of evidence.json; nil if there is no such file
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

// collect runs the program that has the unit's name and lies beside the lists of units, if there is one.
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
