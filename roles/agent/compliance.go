package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// evidence is what the host's collector writes to evidence.json.
type evidence struct {
	Timestamp pki.Timestamp `json:"timestamp" shape:"R"`
	Controls  []control     `json:"controls" shape:"R"`
}

// control is one rule of a compliance framework and how the host stands to it.
type control struct {
	Control           string         `json:"control" shape:"R"`
	Status            string         `json:"status" shape:"R"`
	FrameworkArticles []string       `json:"framework_articles" shape:"D"`
	Checks            jsontext.Value `json:"checks,omitzero" shape:"O"`
}

// evidenceSlack is how much older than the activation evidence may be.
const evidenceSlack = time.Minute

// comply runs the compliance gate after an activation, once, and reports what
// fails. It returns why the generation must not stay, empty when it may: only
// enforce sends it back. Without a mode, and with auto, it reports what a
// collector finds and want none.
func (p *prover) comply(ctx context.Context, j *journal.Journal) (trouble string) {
	mode := j.Compliance
	if mode == fleet.ModeDisabled {
		return ""
	}
	p.status.waiting("the evidence of %s", nixops.CollectorUnit)
	failing, err := p.collect(ctx, j)
	switch {
	case ctx.Err() != nil:
		return ""
	case errors.Is(err, nixops.ErrNoCollector) && mode != fleet.ModeEnforce:
		return ""
	case err != nil:
		p.log.Warn().Err(err).Str("mode", mode).Msg("compliance unknown")
		trouble = "no evidence: " + err.Error()
	case len(failing) > 0:
		p.log.Warn().Strs("controls", failing).Str("mode", mode).Msg("compliance fails")
		trouble = "controls fail: " + strings.Join(failing, ", ")
	}
	if mode != fleet.ModeEnforce {
		return ""
	}
	return trouble
}

// collect names the controls that fail and reports each of them; what keeps
// it from knowing is reported and returned.
func (p *prover) collect(ctx context.Context, j *journal.Journal) (failing []string, err error) {
	activated := j.Since
	problem := protocol.RuntimeGateError{ActivationCompletedAt: activated}
	defer func() {
		if err != nil && ctx.Err() == nil && (j.Compliance == fleet.ModeEnforce || !errors.Is(err, nixops.ErrNoCollector)) {
			problem.Reason = err.Error()
			p.reporter.report(protocol.EventRuntimeGateError, j.ChannelRef, problem)
		}
	}()
	found, err := p.host.CollectEvidence(ctx)
	if err != nil {
		return nil, err
	}
	if found.ExitCode != 0 {
		code := int32(found.ExitCode)
		problem.CollectorExitCode = &code
		return nil, fmt.Errorf("the collector exited with %d", code)
	}
	if found.Document == nil {
		return nil, errors.New("the collector wrote no evidence")
	}
	var e evidence
	if err := pki.Decode(found.Document, &e); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	problem.EvidenceCollectedAt = &e.Timestamp
	if e.Timestamp.Before(activated.Add(-evidenceSlack)) {
		return nil, fmt.Errorf("the evidence is of %s, before the activation", e.Timestamp)
	}
	for _, c := range e.Controls {
		if c.Status != "non-compliant" && c.Status != "error" || slices.Contains(failing, c.Control) {
			continue
		}
		failing = append(failing, c.Control)
		p.reporter.report(protocol.EventComplianceFailure, j.ChannelRef, protocol.ComplianceFailure{
			ControlID: c.Control, Status: c.Status, FrameworkArticles: append([]string{}, c.FrameworkArticles...),
			EvidenceSnippet: c.Checks, EvidenceCollectedAt: e.Timestamp,
		})
	}
	return failing, nil
}
