package cp

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// newEventID is unique enough to name a report to a person.
func newEventID(now time.Time) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyz"
	var suffix [8]byte
	for i := range suffix {
		suffix[i] = letters[rand.IntN(len(letters))]
	}
	return "evt-" + strconv.FormatInt(now.UnixMilli(), 10) + "-" + string(suffix[:])
}

// reports takes what agents report.
type reports struct {
	log      zerolog.Logger
	world    *world
	snapshot *current
	repeated *repeated
	metrics  *metrics
}

func (p *reports) report(c *call) (any, error) {
	var req protocol.ReportRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	parsed, err := protocol.ParseReport(&req)
	if err != nil {
		return nil, badRequest(http.StatusUnprocessableEntity, "%v", err)
	}
	if err := c.is(req.Hostname); err != nil {
		return nil, err
	}
	host := req.Hostname
	hash, err := hashOf(&req)
	if err != nil {
		return nil, badRequest(http.StatusUnprocessableEntity, "%v", err)
	}
	if id, again := p.repeated.find(host, hash); again {
		return protocol.ReportResponse{EventID: id}, nil
	}
	var hostKey *string
	if h := p.snapshot.Load().rel.Fleet.Hosts[host]; h != nil {
		hostKey = h.Pubkey
	}
	verdict, signed := protocol.VerifyEvidence(hostKey, parsed)
	row, err := reportRow(host, req.Rollout, req.Event, req.Details)
	if err != nil {
		return nil, err
	}
	if signed {
		word := string(verdict)
		row.Verdict = &word
	}
	told := reportOf(parsed, verdict)
	told.Unsigned = verdict == protocol.VerdictUnsigned && hostKey != nil
	if err := p.world.change(c.Context(), func(w *rollout.World, now time.Time) rollout.Change {
		return w.Report(host, told, now)
	}, row); err != nil {
		return nil, err
	}
	p.repeated.note(host, hash, row.EventID)
	p.count(host, told)
	p.log.Info().Str("host", host).Str("event", req.Event).Str("verdict", string(verdict)).Msg("report received")
	return protocol.ReportResponse{EventID: row.EventID}, nil
}

// maxDetails bounds the details that are kept of a report, in bytes: 200 of them
// are one answer.
const maxDetails = 64 << 10

// kept is what is stored of details: all of them, or of larger ones their size
// and beginning, as the contract shortens a snippet of evidence.
func kept(details jsontext.Value) (string, error) {
	if len(details) <= maxDetails {
		return string(details), nil
	}
	doc, err := pki.Marshal(map[string]any{
		"_truncated_": true, "_original_size_bytes_": len(details),
		"_preview_": strings.ToValidUTF8(string(details[:900]), ""),
	})
	return string(doc), err
}

// reportRow is what is stored of a report.
func reportRow(host string, rolloutID *string, event string, details jsontext.Value) (store.Report, error) {
	now := time.Now()
	if rolloutID != nil {
		bounded := brief(*rolloutID)
		rolloutID = &bounded
	}
	text, err := kept(details)
	return store.Report{
		EventID: newEventID(now), Hostname: host, Event: event, ReceivedAt: now, Rollout: rolloutID, Details: text,
	}, err
}

// reportOf is what decisions depend on. Only the one signature that does not verify keeps a report from counting.
func reportOf(r *protocol.Parsed, verdict protocol.Verdict) rollout.Report {
	out := rollout.Report{Event: r.Event, Counts: verdict.Counts()}
	if r.Rollout != nil {
		out.RolloutID = *r.Rollout
	}
	out.Dispatch = brief(r.Dispatch)
	switch d := r.Details.(type) {
	case *protocol.ActivationStarted:
		out.Closure = d.ClosureHash
	case *protocol.ActivationDeferred:
		out.Closure, out.Reason, out.Reboots = d.ClosureHash, d.Component, d.Reboots == "immediate"
	case *protocol.ClosureQuarantined:
		out.Closure, out.Reason = d.ClosureHash, d.Reason
	case *protocol.ActivationFailed:
		out.Phase = d.Phase
	case *protocol.RealiseFailed:
		out.Closure, out.Reason = d.ClosureHash, d.Reason
	case *protocol.VerifyMismatch:
		out.Reason = "expected " + d.Expected + ", but " + d.Actual + " runs"
	case *protocol.Reasoned:
		out.Reason = d.Reason
	case *protocol.ClosureSignatureMismatch:
		out.Closure = d.ClosureHash
	case *protocol.StaleTarget:
		out.Closure = d.ClosureHash
	case *protocol.ComplianceFailure:
		out.Reason = d.ControlID
	case *protocol.RuntimeGateError:
		out.Reason = d.Reason
	case *protocol.ManifestProblem:
		out.Reason = d.Reason
	}
	return out
}

func (p *reports) count(host string, told rollout.Report) {
	if !told.Counts {
		return
	}
	switch told.Event {
	case protocol.EventComplianceFailure:
		p.metrics.compliance.WithLabelValues(p.metrics.control(told.Reason), host).Inc()
	case protocol.EventRuntimeGateError:
		p.metrics.gateErrors.Inc()
	}
}
