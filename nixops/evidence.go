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
	how, err := properties(ctx, []string{"RemainAfterExit"}, CollectorUnit)
	if err != nil || len(how) == 0 {
		return 0, err
	}
	// One that remains after its exit is active from its last run on: a start would do nothing, and a wait for its
	// end would not end.
	args := []string{"start", "--wait", "--", CollectorUnit}
	if how[0]["RemainAfterExit"] == "yes" {
		args = []string{"restart", "--", CollectorUnit}
	}
	_, err = command{path: "systemctl", args: args, timeout: collectTime}.run(ctx)
	exit, err := exitOf(err)
	if err != nil {
		return exit, err
	}
	// A unit whose condition is not met is not run and has not failed, and what it wrote is of an earlier run.
	after, err := properties(ctx, []string{"ConditionResult"}, CollectorUnit)
	if err == nil && len(after) > 0 && after[0]["ConditionResult"] == "no" {
		err = fmt.Errorf("%s did not run, since a condition of it is not met", CollectorUnit)
	}
	return exit, err
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
