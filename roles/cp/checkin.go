package cp

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// maxWait bounds how long a check-in is held.
const maxWait = 300 * time.Second

// spread is how long after the start answers spread the next check-ins.
const spread = 2 * time.Minute

func (s *server) checkin(w http.ResponseWriter, r *http.Request) {
	var req protocol.CheckinRequest
	if !readJSON(w, r, &req) {
		return
	}
	if !ownHost(w, r, req.Hostname) {
		return
	}
	host := req.Hostname
	s.metrics.checkins.Inc()
	// A held request of this host is over: this one knows more.
	s.waiters.replace(host)
	wait := preferredWait(r.Header.Values("Prefer"))
	c := &contact{host: host, o: s.observe(host, &req), snap: s.snapshot.Load()}
	s.seen.note(host, &req)
	d, err := s.decide(r.Context(), c)
	if err == nil && wait > 0 && d.waits() {
		d, err = s.hold(w, r, c, d, wait)
	}
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, s.answer(host, d))
}

// contact is one check-in: what its host said, and the release by which it was
// understood.
type contact struct {
	host string
	o    rollout.Observation
	snap *snapshot
	held *waiter // nil while the request is not held
}

// decision is an answer and the release that it belongs to.
type decision struct {
	rollout.Decision
	snap *snapshot
}

func (d decision) waits() bool { return d.Target == nil && d.Rollback == nil }

// preferredWait reads Prefer: wait=N (RFC 7240 §2), N in seconds.
func preferredWait(headers []string) time.Duration {
	for _, h := range headers {
		for preference := range strings.SplitSeq(h, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			if n, err := strconv.Atoi(strings.Trim(value, ` "`)); err == nil && n > 0 {
				return time.Duration(min(n, int(maxWait/time.Second))) * time.Second
			}
		}
	}
	return 0
}

// decide is one check-in's step of the decision procedure.
func (s *server) decide(ctx context.Context, c *contact) (decision, error) {
	d := decision{snap: c.snap}
	err := s.change(ctx, func(w *rollout.World, now time.Time) (change rollout.Change) {
		if s.store == nil || c.held != nil && c.held.gone() {
			// Without a database nothing is dispatched: it could not be remembered. A
			// request that a newer one has replaced takes nothing with it.
			return rollout.Change{}
		}
		if d.snap = s.snapshot.Load(); d.snap != c.snap {
			c.o.Attested = false // verified for the release before
		}
		d.Decision, change = w.Checkin(c.host, c.o, now)
		return change
	})
	if err != nil {
		return d, err
	}
	if d.Target != nil && !d.Target.Resent {
		s.log.Info().Str("host", c.host).Str("rollout", d.Target.RolloutID).Str("closure", d.Target.Closure).Int("wave", d.Target.Wave).Msg("dispatch")
	}
	if d.waits() && d.Reason.Gate != "" {
		s.metrics.gateBlocks.WithLabelValues(d.Reason.Gate).Inc()
	}
	return d, nil
}

// hold keeps the request open until the host's decision changes, the time is
// over, a newer request of the host comes or the server stops. Who the caller is
// is checked anew before it is answered.
func (s *server) hold(w http.ResponseWriter, r *http.Request, c *contact, d decision, wait time.Duration) (decision, error) {
	if c.held = s.waiters.hold(c.host); c.held == nil {
		return d, nil
	}
	defer s.waiters.release(c.host, c.held)
	w.Header().Set("Preference-Applied", "wait")
	control := http.NewResponseController(w)
	// A held request outlives the deadlines of plain ones. Their errors only mean
	// that the connection has none.
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Now().Add(wait + requestTimeout))
	until := time.Now().Add(wait)
	over := time.NewTimer(wait)
	defer over.Stop()
	// While it is held the host counts as present; a decision may also have
	// changed between the look before and the registration.
	c.held.wake()
	for last := false; !last; {
		select {
		case <-r.Context().Done():
			s.left(c, false)
			return d, r.Context().Err()
		case <-c.held.replaced:
			return d, nil
		case <-over.C:
			last = true
		case <-s.stopping:
			last = true
		case <-c.held.woken:
		}
		if _, err := s.authorize(r.Context()); err != nil {
			return d, &unauthorized{err}
		}
		if last {
			break
		}
		c.o.Wait = max(0, time.Until(until))
		var err error
		if d, err = s.decide(r.Context(), c); err != nil {
			return d, err
		}
		last = !d.waits()
	}
	s.left(c, true)
	return d, nil
}

// left notes that nothing holds the host's presence any longer, and that it was
// there until now when it is answered.
func (s *server) left(c *contact, answered bool) {
	if c.held.gone() {
		return
	}
	look(s, func(w *rollout.World, now time.Time) bool {
		if answered {
			w.Seen(c.host, now)
		}
		w.Gone(c.host, now)
		return answered
	})
}

// unauthorized is a held request whose caller was shut out meanwhile.
type unauthorized struct{ error }

func (s *server) answerFailure(w http.ResponseWriter, r *http.Request, err error) {
	if out, ok := err.(*unauthorized); ok {
		w.Header().Del("Preference-Applied")
		s.refuse(w, r, caller(r), out.error)
		return
	}
	if r.Context().Err() != nil {
		return
	}
	s.log.Error().Err(err).Str("path", r.URL.Path).Msg("request failed")
	w.WriteHeader(http.StatusInternalServerError)
}

// observe turns a check-in into what decisions depend on. Its words are the
// host's own; what decisions say of them is kept, so each is bounded.
func (s *server) observe(host string, req *protocol.CheckinRequest) rollout.Observation {
	o := rollout.Observation{
		Closure: brief(req.CurrentGeneration.ClosureHash), BootID: brief(req.CurrentGeneration.BootID),
		KnowsLease: req.Phase != nil, RebootPending: req.RebootPending != nil,
	}
	if req.HealthCheckMode != nil {
		o.ProbeMode = *req.HealthCheckMode
	}
	// Agents of v1 send unknown probes although they run none.
	if o.ProbeMode == fleet.ModePermissive || o.ProbeMode == fleet.ModeEnforce {
		o.Probes = req.HealthProbes
	}
	if f := req.LastFetchOutcome; f != nil {
		o.FetchResult = f.Result
		if f.RolloutID != nil {
			o.FetchRollout = brief(*f.RolloutID)
		}
	}
	if req.Held != nil {
		o.Held = brief(*req.Held)
	}
	if p := req.Phase; p != nil {
		o.Phase = &protocol.Phase{Name: brief(p.Name), Intent: brief(p.Intent), ClosureHash: brief(p.ClosureHash)}
	}
	s.attest(host, req, &o)
	return o
}

// maxWords bounds a sentence of a host that ends in rows and views, in bytes.
const maxWords = 500

func brief(s string) string {
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + " …"
	}
	return s
}

// attest believes lastConfirmedAt when the host signed it for an id of the
// intent that its channel has now.
func (s *server) attest(host string, req *protocol.CheckinRequest, o *rollout.Observation) {
	if req.LastConfirmedAt == nil || req.AttestationSignature == nil {
		return
	}
	at := req.LastConfirmedAt.Time
	o.LastConfirmedAt = &at
	snap := s.snapshot.Load()
	h := snap.rel.Fleet.Hosts[host]
	if h == nil || h.Pubkey == nil || h.ClosureHash == nil || *h.ClosureHash != o.Closure {
		return
	}
	channel := snap.rel.Channels[h.Channel]
	if channel == nil {
		return
	}
	ids := s.rolloutIDs(channel.RolloutID)
	if len(ids) == 0 {
		ids = []string{channel.RolloutID}
	}
	signature := *req.AttestationSignature
	o.Attested = s.seen.attested(host, *h.Pubkey, signature, at, ids, func(id string) bool {
		return protocol.VerifyAttestation(*h.Pubkey, host, pki.At(at), id, signature)
	}) != ""
}

func (s *server) rolloutIDs(id string) []string {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	return s.world.IDs(id)
}

func (s *server) rolloutView(id string) (rollout.RolloutView, bool) {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	return s.world.Rollout(id, time.Now())
}

// answer puts a decision into the wire's words.
func (s *server) answer(host string, d decision) *protocol.CheckinResponse {
	out := &protocol.CheckinResponse{NextCheckinSecs: s.nextCheckin(), Rollback: d.Rollback}
	snap := d.snap
	if h := snap.rel.Fleet.Hosts[host]; h != nil {
		if c := snap.rel.Channels[h.Channel]; c != nil && c.Head != nil {
			out.Head = &protocol.HeadRef{Channel: c.Channel, Hash: c.HeadFile.Hash}
		}
	}
	if t := d.Target; t != nil {
		wave, startBy := uint32(t.Wave), seconds(t.StartBy)
		out.Target = &protocol.Target{
			ClosureHash: t.Closure,
			// The rollout id, which v1 agents name in confirms and reports.
			ChannelRef: t.RolloutID, RolloutID: t.RolloutID, EvaluatedAt: pki.At(time.Now().Truncate(time.Second)), WaveIndex: &wave,
			Activate: &protocol.Activate{ConfirmWindowSecs: seconds(t.ConfirmWindow), ConfirmEndpoint: protocol.ConfirmPath},
			SignedAt: pki.At(t.SignedAt), FreshnessWindowSecs: seconds(t.Freshness), ComplianceMode: &t.ComplianceMode, StartBySecs: &startBy,
		}
	}
	return out
}

func seconds(d time.Duration) uint32 { return uint32(max(0, min(d/time.Second, 1<<32-1))) }

// nextCheckin is the interval; after a restart it spreads, so that the fleet
// does not come back in step.
func (s *server) nextCheckin() uint32 {
	next := s.cfg.CheckinInterval
	if time.Since(s.started) < spread {
		next += s.cfg.Jitter(s.cfg.CheckinInterval/2 + 1)
	}
	return max(1, seconds(next))
}
