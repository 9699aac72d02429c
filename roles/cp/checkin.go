package cp

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// spread is how long after the start answers spread the next check-ins.
const spread = 2 * time.Minute

// checkins tells hosts what to run, and hears that they run it.
type checkins struct {
	cfg      *Config
	log      zerolog.Logger
	store    store.Database
	world    *world
	snapshot *current
	waiters  *waiters
	seen     *lastSeen
	door     *door
	metrics  *metrics
	started  time.Time
	stopping <-chan struct{}

	dispatches bool // there is a database that remembers what was told
}

func (k *checkins) checkin(c *call) (any, error) {
	var req protocol.CheckinRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	if err := c.is(req.Hostname); err != nil {
		return nil, err
	}
	host := req.Hostname
	k.metrics.checkins.Add(1)
	// A held request of this host is over: this one knows more.
	twin := k.waiters.replace(host, connectionOf(c.Context()))
	wait := preferredWait(c.Header.Values("Prefer"))
	x := &contact{host: host, o: k.observe(host, &req), snap: k.snapshot.Load()}
	if trouble := k.seen.note(host, &req, c.caller); trouble != "" {
		k.log.Warn().Str("host", host).Str("trouble", trouble).Msg("trouble on a host")
	}
	x.o.Twin = twin
	d, err := k.decide(c.Context(), x)
	x.o.Twin = false // it is noted, and a person may act while the request is held
	if err == nil && wait > 0 && d.waits() {
		d, err = k.hold(c, x, d, wait)
	}
	if err != nil {
		return nil, err
	}
	return k.answer(host, d), nil
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

// decide is one check-in's step of the decision procedure.
func (k *checkins) decide(ctx context.Context, c *contact) (decision, error) {
	d := decision{snap: c.snap}
	var named []rollout.Twins
	err := k.world.change(ctx, func(w *rollout.World, now time.Time) (change rollout.Change) {
		if !k.dispatches || c.held != nil && c.held.gone() {
			// Without a database nothing is dispatched: it could not be remembered. A
			// request that a newer one has replaced takes nothing with it.
			return rollout.Change{}
		}
		if d.snap = k.snapshot.Load(); d.snap != c.snap {
			c.o.Attested = false // verified for the release before
		}
		d.Decision, change = w.Checkin(c.host, c.o, now)
		named = change.Twins
		return change
	})
	for _, t := range named {
		k.log.Warn().Str("host", t.Host).Strs("boot_ids", t.BootIDs[:]).Bool("held", t.Held).
			Msg("two machines answer as one host")
	}
	if err != nil {
		return d, err
	}
	if d.Target != nil && !d.Target.Resent {
		k.log.Info().Str("host", c.host).Str("rollout", d.Target.RolloutID).Str("closure", d.Target.Closure).
			Int("wave", d.Target.Wave).Msg("dispatch")
	}
	if d.waits() && d.Reason.Gate != "" {
		blocks, known := k.metrics.gateBlocks.Load(d.Reason.Gate)
		if !known {
			blocks, _ = k.metrics.gateBlocks.LoadOrStore(d.Reason.Gate, new(atomic.Uint64))
		}
		blocks.(*atomic.Uint64).Add(1)
	}
	return d, nil
}

// observe turns a check-in into what decisions depend on. Its words are the
// host's own; what decisions say of them is kept, so each is bounded.
func (k *checkins) observe(host string, req *protocol.CheckinRequest) rollout.Observation {
	o := rollout.Observation{
		Closure: brief(req.CurrentGeneration.ClosureHash), BootID: brief(req.CurrentGeneration.BootID),
		KnowsLease: req.Phase != nil, RebootPending: req.RebootPending != nil,
	}
	if req.UptimeSecs != nil {
		o.Uptime = time.Duration(min(*req.UptimeSecs, 1<<32)) * time.Second
	}
	if req.HealthCheckMode != nil {
		o.ProbeMode = *req.HealthCheckMode
	}
	// Agents of v1 send unknown probes although they run none.
	if o.ProbeMode == fleet.ModePermissive || o.ProbeMode == fleet.ModeEnforce {
		o.Probes = req.HealthProbes
	}
	if f := req.LastFetchOutcome; f != nil {
		o.Fetch.Result, o.Fetch.Dispatch = f.Result, brief(f.Dispatch)
		if f.RolloutID != nil {
			o.Fetch.Rollout = brief(*f.RolloutID)
		}
	}
	if req.Held != nil {
		o.Held = brief(*req.Held)
	}
	if p := req.Phase; p != nil {
		o.Phase = &protocol.Phase{
			Name: brief(p.Name), Intent: brief(p.Intent), ClosureHash: brief(p.ClosureHash), Dispatch: brief(p.Dispatch),
		}
	}
	k.attest(host, req, &o)
	return o
}

// attest believes lastConfirmedAt when the host signed it for an id of the
// intent that its channel has now.
func (k *checkins) attest(host string, req *protocol.CheckinRequest, o *rollout.Observation) {
	if req.LastConfirmedAt == nil || req.AttestationSignature == nil {
		return
	}
	at := req.LastConfirmedAt.Time
	o.LastConfirmedAt = &at
	snap := k.snapshot.Load()
	h := snap.rel.Fleet.Hosts[host]
	if h == nil || h.Pubkey == nil || h.ClosureHash == nil || *h.ClosureHash != o.Closure {
		return
	}
	channel := snap.rel.Channels[h.Channel]
	if channel == nil {
		return
	}
	signature := *req.AttestationSignature
	if k.seen.attests(host, *h.Pubkey, signature, at, channel.RolloutID) {
		o.Attested = true
		return
	}
	ids := k.world.ids(channel.RolloutID)
	if len(ids) == 0 {
		ids = []string{channel.RolloutID}
	}
	o.Attested = k.seen.attested(host, *h.Pubkey, signature, at, ids, func(id string) bool {
		return protocol.VerifyAttestation(*h.Pubkey, host, pki.At(at), id, signature)
	}) != ""
}

// answer puts a decision into the wire's words.
func (k *checkins) answer(host string, d decision) *protocol.CheckinResponse {
	out := &protocol.CheckinResponse{NextCheckinSecs: k.nextCheckin(), Rollback: d.Rollback}
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
			ChannelRef: t.RolloutID, RolloutID: t.RolloutID, EvaluatedAt: pki.At(time.Now().Truncate(time.Second)),
			WaveIndex: &wave,
			Activate:  &protocol.Activate{ConfirmWindowSecs: seconds(t.ConfirmWindow), ConfirmEndpoint: protocol.ConfirmPath},
			SignedAt:  pki.At(t.SignedAt), FreshnessWindowSecs: seconds(t.Freshness), ComplianceMode: &t.ComplianceMode,
			StartBySecs: &startBy, Dispatch: t.Dispatch,
		}
	}
	return out
}

func seconds(d time.Duration) uint32 { return uint32(max(0, min(d/time.Second, 1<<32-1))) }

// nextCheckin is the interval; after a restart it spreads, so that the fleet
// does not come back in step.
func (k *checkins) nextCheckin() uint32 {
	next := k.cfg.CheckinInterval
	if time.Since(k.started) < spread {
		next += k.cfg.Jitter(k.cfg.CheckinInterval/2 + 1)
	}
	return max(1, seconds(next))
}

// lastSeen is what views show of a host's last check-in besides what decisions
// depend on. It lives in memory: an idle check-in writes nothing.
type lastSeen struct {
	mu           sync.Mutex
	byHost       map[string]sighting
	attestations map[string]attestation
}

// attestation is the last one of a host: an idle host repeats it at every
// check-in. It verified for rolloutID or, when that is empty, for no id up to
// newest: a host that has nothing to do in a rollout attests an older one.
type attestation struct {
	key, signature    string
	at                time.Time
	rolloutID, newest string
}

// is reports whether a host says again what this is about.
func (a attestation) is(key, signature string, at time.Time) bool {
	return a.key == key && a.signature == signature && a.at.Equal(at)
}

type sighting struct {
	at      time.Time
	uptime  *uint64
	pending string
	held    *string

	left time.Time // its held check-in ended without an answer; zero once it is heard again

	word                protocol.AgentWord
	notBefore, notAfter time.Time // of the certificate
}

func newLastSeen() *lastSeen {
	return &lastSeen{byHost: map[string]sighting{}, attestations: map[string]attestation{}}
}

// note remembers a check-in. It returns the trouble that the host tells of for the first time.
func (l *lastSeen) note(host string, req *protocol.CheckinRequest, caller pki.Identity) (trouble string) {
	s := sighting{at: time.Now(), uptime: req.UptimeSecs, word: wordOf(req), notBefore: caller.NotBefore,
		notAfter: caller.NotAfter}
	if req.Held != nil {
		held := brief(*req.Held)
		s.held = &held
	}
	if req.PendingGeneration != nil {
		s.pending = brief(req.PendingGeneration.ClosureHash)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := s.word.Trouble(); now != "" && now != l.byHost[host].word.Trouble() {
		trouble = now
	}
	l.byHost[host] = s
	return trouble
}

// maxProbes bounds the probes of a host that are kept to be shown.
const maxProbes = 32

// wordOf is what an agent says of itself, as far as people are shown it. Every text is bounded: hosts choose them.
func wordOf(req *protocol.CheckinRequest) protocol.AgentWord {
	word := protocol.AgentWord{Version: brief(req.AgentVersion), BootID: brief(req.CurrentGeneration.BootID),
		Probes: []protocol.ProbeResult{}}
	if p := req.Phase; p != nil {
		word.Phase = &protocol.Phase{Name: brief(p.Name), ClosureHash: brief(p.ClosureHash), Since: p.Since,
			Attempt: p.Attempt}
	}
	if f := req.LastFetchOutcome; f != nil && f.Error != nil {
		word.FetchError = brief(*f.Error)
	}
	if req.RebootPending != nil {
		pending := brief(*req.RebootPending)
		word.RebootPending = &pending
	}
	if req.CannotBegin != nil {
		word.CannotBegin = brief(*req.CannotBegin)
	}
	if b := req.Boot; b != nil {
		word.Boot = &protocol.BootWord{Loader: brief(b.Loader), Unknown: brief(b.Unknown), Once: brief(b.Once),
			Counter: brief(b.Counter), Expected: brief(b.Expected)}
		if b.Next != nil {
			next := brief(*b.Next)
			word.Boot.Next = &next
		}
	}
	if req.HealthCheckMode != nil {
		word.ProbeMode = *req.HealthCheckMode
	}
	for _, probe := range req.HealthProbes[:min(len(req.HealthProbes), maxProbes)] {
		probe.Name = brief(probe.Name)
		if probe.FailureReason != nil {
			why := brief(*probe.FailureReason)
			probe.FailureReason = &why
		}
		word.Probes = append(word.Probes, probe)
	}
	return word
}

func (l *lastSeen) of(host string) (sighting, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byHost[host]
	return s, ok
}

// attests reports whether a signature was found to be of the rollout whose newest id
// this is: an idle host says the same at every check-in.
func (l *lastSeen) attests(host, key, signature string, at time.Time, newest string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.attestations[host]
	return a.rolloutID != "" && a.newest == newest && a.is(key, signature, at)
}

// attested gives the one of ids, oldest first, for which verifies holds, empty
// when there is none. What was found before is not looked for again.
func (l *lastSeen) attested(
	host, key, signature string, at time.Time, ids []string, verifies func(id string) bool,
) string {
	l.mu.Lock()
	a, known := l.attestations[host]
	l.mu.Unlock()
	untried := ids
	if known && a.is(key, signature, at) {
		if slices.Contains(ids, a.rolloutID) {
			return a.rolloutID
		}
		untried = ids[slices.Index(ids, a.newest)+1:]
	}
	a = attestation{key: key, signature: signature, at: at, newest: ids[len(ids)-1]}
	if i := slices.IndexFunc(untried, verifies); i >= 0 {
		a.rolloutID = untried[i]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attestations[host] = a
	return a.rolloutID
}
