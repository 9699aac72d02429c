package cp

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

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

func (s *server) report(w http.ResponseWriter, r *http.Request) {
	var req protocol.ReportRequest
	if !readJSON(w, r, &req) {
		return
	}
	if _, err := protocol.ParseDetails(req.Event, req.Details); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	if !ownHost(w, r, req.Hostname) {
		return
	}
	host := req.Hostname
	hash, err := hashOf(&req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	if id, again := s.repeated.find(host, hash); again {
		writeJSON(w, http.StatusOK, protocol.ReportResponse{EventID: id})
		return
	}
	var hostKey *string
	if h := s.snapshot.Load().rel.Fleet.Hosts[host]; h != nil {
		hostKey = h.Pubkey
	}
	verdict, signed := protocol.VerifyEvidence(hostKey, &req)
	id, err := s.storeReport(r, host, req.Rollout, req.Event, req.Details, verdict, signed)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	if err := s.change(r.Context(), func(w *rollout.World, now time.Time) rollout.Change {
		told := reportOf(&req, verdict)
		told.Unsigned = verdict == protocol.VerdictUnsigned && hostKey != nil
		return w.Report(host, told, now)
	}); err != nil {
		s.answerFailure(w, r, err)
		return
	}
	s.repeated.note(host, hash, id)
	s.countReport(host, &req, verdict)
	s.log.Info().Str("host", host).Str("event", req.Event).Str("verdict", string(verdict)).Msg("report received")
	writeJSON(w, http.StatusOK, protocol.ReportResponse{EventID: id})
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
		"_truncated_": true, "_original_size_bytes_": len(details), "_preview_": strings.ToValidUTF8(string(details[:900]), ""),
	})
	return string(doc), err
}

func (s *server) storeReport(r *http.Request, host string, rolloutID *string, event string, details jsontext.Value, verdict protocol.Verdict, signed bool) (string, error) {
	id := newEventID(time.Now())
	if s.store == nil {
		return id, nil
	}
	var stored *string
	if signed {
		word := string(verdict)
		stored = &word
	}
	if rolloutID != nil {
		bounded := brief(*rolloutID)
		rolloutID = &bounded
	}
	text, err := kept(details)
	if err != nil {
		return id, err
	}
	return id, s.store.AddReport(r.Context(), store.Report{
		EventID: id, Hostname: host, Event: event, ReceivedAt: time.Now(), Rollout: rolloutID, Verdict: stored, Details: text,
	})
}

// reportOf is what decisions depend on. Only the one signature that does not
// verify keeps a report from counting.
func reportOf(req *protocol.ReportRequest, verdict protocol.Verdict) rollout.Report {
	var d struct {
		ClosureHash string `json:"closure_hash"`
		Phase       string `json:"phase"`
		Reason      string `json:"reason"`
		ControlID   string `json:"control_id"`
		StderrTail  string `json:"stderr_tail"`
		Component   string `json:"component"`
		Reboots     string `json:"reboots"`
		Expected    string `json:"expected"`
		Actual      string `json:"actual"`
	}
	// Details of another shape than expected give empty members, which say nothing.
	_ = json.Unmarshal(req.Details, &d)
	out := rollout.Report{Event: req.Event, Closure: d.ClosureHash, Phase: d.Phase, Reason: d.Reason, Detail: d.StderrTail, Counts: verdict.Counts()}
	if req.Rollout != nil {
		out.RolloutID = *req.Rollout
	}
	switch req.Event {
	case protocol.EventComplianceFailure:
		out.Reason = d.ControlID
	case protocol.EventVerifyMismatch:
		out.Reason = "expected " + d.Expected + ", " + d.Actual + " runs"
	case protocol.EventActivationDeferred:
		out.Reason, out.Reboots = d.Component, d.Reboots == "immediate"
	}
	return out
}

func (s *server) countReport(host string, req *protocol.ReportRequest, verdict protocol.Verdict) {
	if !verdict.Counts() {
		return
	}
	switch req.Event {
	case protocol.EventComplianceFailure:
		s.metrics.compliance.WithLabelValues(s.metrics.control(reportOf(req, verdict).Reason), host).Inc()
	case protocol.EventRuntimeGateError:
		s.metrics.gateErrors.Inc()
	}
}
