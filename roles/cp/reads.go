package cp

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	version, _ := s.version()
	var last *protocol.OffsetTime
	if ms := s.lastTick.Load(); ms > 0 {
		t := protocol.Offset(time.UnixMilli(ms))
		last = &t
	}
	writeJSON(w, http.StatusOK, struct {
		OK       bool                 `json:"ok"`
		Version  string               `json:"version"`
		LastTick *protocol.OffsetTime `json:"last_tick_at"`
	}{true, version, last})
}

func (s *server) whoami(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, protocol.Whoami{CN: caller(r).CommonName, IssuedAt: protocol.Offset(time.Now().Truncate(time.Second))})
}

func (s *server) channel(w http.ResponseWriter, r *http.Request) {
	rel, name := s.snapshot.Load().rel, r.PathValue("name")
	c, ok := rel.Fleet.Channels[name]
	if !ok {
		writeNotFound(w, r, "the fleet has no channel "+strconv.Quote(name))
		return
	}
	at := protocol.Offset(rel.SignedAt)
	writeJSON(w, http.StatusOK, protocol.ChannelResponse{Name: name, DeclaredCICommit: text(rel.Commit), SignedAt: &at, FreshnessWindowMinutes: c.FreshnessWindow})
}

func (s *server) hosts(w http.ResponseWriter, r *http.Request) {
	verified := map[string]uint32{}
	if s.store != nil {
		var err error
		if verified, err = s.store.VerifiedReports(r.Context()); err != nil {
			s.answerFailure(w, r, err)
			return
		}
	}
	views := look(s, func(w *rollout.World, now time.Time) []rollout.HostView {
		views := w.Hosts(now)
		for i := range views {
			// The list explains what waits; a converged host needs no sentence.
			if !views[i].Converged {
				if v, ok := w.Host(views[i].Host, now); ok {
					views[i] = v
				}
			}
		}
		return views
	})
	out := protocol.HostsResponse{Hosts: make([]protocol.HostEntry, 0, len(views))}
	for _, v := range views {
		e := s.entry(v, verified[v.Host])
		shut, err := s.shutOut(r.Context(), v)
		if err != nil {
			s.answerFailure(w, r, err)
			return
		}
		if shut != nil {
			e.Reason = shut
		}
		out.Hosts = append(out.Hosts, e)
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *server) entry(v rollout.HostView, verified uint32) protocol.HostEntry {
	e := protocol.HostEntry{
		Hostname: v.Host, Channel: v.Channel, DeclaredClosureHash: text(v.DeclaredClosure), CurrentClosureHash: text(v.Closure),
		LastRolloutID: text(v.RolloutID), Converged: v.Converged, VerifiedEventCount: verified,
		PendingReboot: v.PendingReboot, QuarantinedClosure: text(v.Quarantined), Online: &v.Online,
	}
	v1, ours := stateWords(v.State)
	e.RolloutState, e.State = text(v1), text(ours)
	for _, f := range v.Failures {
		if strings.HasPrefix(f, "compliance:") {
			e.OutstandingComplianceFailures++
		} else {
			e.OutstandingRuntimeGateErrors++
		}
	}
	if v.FailingSince != nil {
		e.OutstandingHealthFailures = 1
	}
	if v.LastSeen != nil {
		at := pki.At(v.LastSeen.Truncate(time.Millisecond))
		e.LastCheckinAt = &at
	}
	if seen, ok := s.seen.of(v.Host); ok {
		e.LastUptimeSecs, e.PendingClosureHash, e.Held = seen.uptime, text(seen.pending), seen.held
	}
	if h := s.snapshot.Load().rel.Fleet.Hosts[v.Host]; h != nil && h.Pin != nil {
		e.Pin = &protocol.HostPin{Commit: h.Pin.Commit, Reason: h.Pin.Reason, ExpiresAt: h.Pin.ExpiresAt}
	}
	if v.Reason.Code != "" && !v.Converged {
		e.Reason = &v.Reason
	}
	return e
}

// stateWords is a host's state in v1's words, and in ours where v1 has none:
// readers of v1 know a closed list. What is staged has been dispatched and its
// pendingReboot is set; what is passed over has yet to begin.
func stateWords(s rollout.HostState) (v1, ours string) {
	switch s {
	case rollout.Deferred:
		return string(rollout.Dispatched), string(s)
	case rollout.Skipped:
		return string(rollout.Queued), string(s)
	}
	return string(s), ""
}

func (s *server) explain(w http.ResponseWriter, r *http.Request) {
	name, found := r.PathValue("name"), false
	v := look(s, func(w *rollout.World, now time.Time) (v rollout.HostView) {
		v, found = w.Host(name, now)
		return v
	})
	if !found {
		writeRefusal(w, r, http.StatusNotFound, "no-such-host", "the fleet declares no host "+strconv.Quote(name))
		return
	}
	e := protocol.Explanation{
		Hostname: v.Host, Channel: v.Channel, Current: text(v.Closure), Declared: text(v.DeclaredClosure),
		State: text(string(v.State)), RolloutID: text(v.RolloutID), Reason: v.Reason,
	}
	if v.RolloutID != "" {
		wave := uint32(v.Wave)
		e.Wave = &wave
	}
	shut, err := s.shutOut(r.Context(), v)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	if shut != nil {
		e.Reason = *shut
	}
	writeJSON(w, http.StatusOK, e)
}

// codeRevoked is the reason of a host that is refused at the door, where no gate
// of the rollouts is asked.
const codeRevoked = "revoked"

// shutOut is what a host waits for that was revoked and has not been heard of
// since: whatever else is true of it, it is old.
func (s *server) shutOut(ctx context.Context, v rollout.HostView) (*protocol.Reason, error) {
	at, revoked := s.snapshot.Load().revoked[v.Host]
	if s.store != nil {
		local, ok, err := s.store.RevokedSince(ctx, v.Host)
		if err != nil {
			return nil, err
		}
		if ok && local.After(at) {
			at, revoked = local, true
		}
	}
	if !revoked || v.LastSeen != nil && !v.LastSeen.Before(at) {
		return nil, nil
	}
	return &protocol.Reason{
		Code: codeRevoked, Gate: "identity",
		Text: "its certificates from before " + pki.At(at).String() + " are revoked, and it has not been heard of since; what it ran then is shown",
		Next: "to let it in again: nixfleet mint-token --hostname " + v.Host + ", and put the token on the host",
	}, nil
}

func (s *server) deferrals(w http.ResponseWriter, _ *http.Request) {
	out := protocol.DeferralsResponse{Deferrals: []protocol.Deferral{}}
	out.Deferrals = append(out.Deferrals, look(s, (*rollout.World).Deferrals)...)
	writeJSON(w, http.StatusOK, out)
}

func (s *server) hostReports(w http.ResponseWriter, r *http.Request) {
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	limit := 15
	if query := r.URL.Query(); query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 0 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		limit = min(max(n, 1), 200)
	}
	reports, err := s.store.Reports(r.Context(), limit)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	out := protocol.HostReportsResponse{Reports: []protocol.HostReport{}}
	for _, rep := range reports {
		out.Reports = append(out.Reports, protocol.HostReport{
			Hostname: rep.Hostname, EventID: rep.EventID, ReceivedAt: protocol.Offset(rep.ReceivedAt), EventKind: rep.Event,
			Rollout: rep.Rollout, SignatureStatus: rep.Verdict, Event: rep.Event, Details: jsontext.Value(rep.Details),
		})
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *server) rollouts(w http.ResponseWriter, r *http.Request) {
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	all := r.URL.Query().Get("all") == "true"
	out := protocol.RolloutsResponse{Rollouts: []protocol.RolloutSummary{}}
	look(s, func(w *rollout.World, now time.Time) bool {
		for _, v := range w.Rollouts(now) {
			if v.Open || all {
				out.Rollouts = append(out.Rollouts, summary(v, w.HostStates(v.RolloutID)))
			}
		}
		return true
	})
	writeJSON(w, http.StatusOK, out)
}

func summary(v rollout.RolloutView, states map[string]rollout.HostState) protocol.RolloutSummary {
	out := protocol.RolloutSummary{
		RolloutID: v.RolloutID, Channel: v.Channel, CurrentWave: uint32(v.Wave), CreatedAt: protocol.Offset(v.CreatedAt),
		HostStates: map[string]string{}, State: string(v.State), Intent: v.Intent, HaltReason: v.HaltReason,
	}
	for host, state := range states {
		v1, ours := stateWords(state)
		out.HostStates[host] = v1
		if ours == "" {
			continue
		}
		if out.States == nil {
			out.States = map[string]string{}
		}
		out.States[host] = ours
	}
	if h := v.Hold; h != nil {
		out.Hold = text(h.Action + " by " + h.By + ": " + h.Reason)
	}
	return out
}

// rolloutID reads the id of the path, or answers 400.
func (s *server) rolloutID(w http.ResponseWriter, r *http.Request) (string, bool) {
	id := r.PathValue("id")
	if !fleet.ValidRolloutID(id) {
		w.WriteHeader(http.StatusBadRequest)
		return "", false
	}
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return "", false
	}
	return id, true
}

func (s *server) lifecycle(w http.ResponseWriter, r *http.Request) {
	id, ok := s.rolloutID(w, r)
	if !ok {
		return
	}
	v, ok := s.rolloutView(id)
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	at := func(t *time.Time) *protocol.OffsetTime {
		if t == nil {
			return nil
		}
		o := protocol.Offset(*t)
		return &o
	}
	writeJSON(w, http.StatusOK, protocol.Lifecycle{
		RolloutID: id, SupersededAt: at(v.SupersededAt), SupersededBy: text(v.SupersededBy), TerminalAt: at(v.TerminalAt),
		Channel: v.Channel, State: string(v.State), HaltReason: v.HaltReason,
	})
}

// terminal are the words of a trace for a dispatch that has ended.
var terminal = map[string]string{
	rollout.DispatchConfirmed: "converged", rollout.DispatchRolledBack: "rolled-back", rollout.DispatchCancelled: "cancelled",
}

func (s *server) trace(w http.ResponseWriter, r *http.Request) {
	id, ok := s.rolloutID(w, r)
	if !ok {
		return
	}
	rows, err := s.store.Trace(r.Context(), id)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	if len(rows) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	out := protocol.Trace{RolloutID: id, Events: []protocol.TraceEvent{}}
	for _, row := range rows {
		e := protocol.TraceEvent{
			Host: row.Host, Channel: row.Channel, Wave: uint32(row.Wave), TargetClosureHash: row.Closure, TargetChannelRef: row.ChannelRef,
			DispatchedAt: protocol.TraceTime{OffsetTime: protocol.Offset(row.DispatchedAt)}, TerminalState: text(terminal[row.State]),
		}
		if e.TerminalState != nil {
			at := protocol.Offset(row.Ended())
			e.TerminalAt = &at
		}
		out.Events = append(out.Events, e)
	}
	writeJSON(w, http.StatusOK, out)
}
