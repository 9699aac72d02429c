package cp

import (
	"context"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// views are what operators, and where reads are open hosts, look at.
type views struct {
	cfg      *Config
	log      zerolog.Logger
	store    store.Database
	world    *world
	snapshot *current
	seen     *lastSeen
	ticker   *ticker
	door     *door
	feed     *feed
	stopping <-chan struct{}
}

// healthResponse is v1's answer of /healthz.
type healthResponse struct {
	OK       bool                 `json:"ok"`
	Version  string               `json:"version"`
	LastTick *protocol.OffsetTime `json:"last_tick_at" shape:"N"`
}

func (p *views) health(*call) (any, error) {
	out := healthResponse{OK: true}
	out.Version, _ = p.cfg.version()
	if ms := p.ticker.last.Load(); ms > 0 {
		t := protocol.Offset(time.UnixMilli(ms))
		out.LastTick = &t
	}
	return out, nil
}

func (p *views) whoami(c *call) (any, error) {
	return protocol.Whoami{CN: c.caller.CommonName, IssuedAt: protocol.Offset(time.Now().Truncate(time.Second))}, nil
}

func (p *views) explain(c *call) (any, error) {
	name, found := c.PathValue("name"), false
	v := look(p.world, func(w *rollout.World, now time.Time) (v rollout.HostView) {
		v, found = w.Host(name, now)
		return v
	})
	if !found {
		return nil, refused(http.StatusNotFound, "no-such-host", "the fleet declares no host %q", name)
	}
	e := protocol.Explanation{
		Hostname: v.Host, Channel: v.Channel, Current: text(v.Closure), Declared: text(v.DeclaredClosure),
		State: text(string(v.State)), RolloutID: text(v.RolloutID), Reason: v.Reason,
	}
	if v.RolloutID != "" {
		wave := uint32(v.Wave)
		e.Wave = &wave
	}
	shut, err := p.shutOut(c.Context(), v)
	if err != nil {
		return nil, err
	}
	if shut != nil {
		e.Reason = *shut
	}
	p.stuck(&e.Reason, name)
	reports, err := p.store.ReportsOf(c.Context(), name)
	if err != nil {
		return nil, err
	}
	if v.State == rollout.Failed || v.State == rollout.Reverted {
		told := make([]protocol.HostReport, 0, len(reports))
		for _, r := range reports {
			told = append(told, reportOfRow(r))
		}
		e.Failure = failureIn(told)
	}
	return e, nil
}

// codeRevoked is the reason of a host that is refused at the door, where no gate
// of the rollouts is asked.
const codeRevoked = "revoked"

// shutOut is what a host waits for that was revoked and has not been heard of
// since: all else that is known of it is older.
func (p *views) shutOut(ctx context.Context, v rollout.HostView) (*protocol.Reason, error) {
	at, revoked := p.snapshot.Load().revoked[v.Host]
	local, ok, err := p.store.RevokedSince(ctx, v.Host)
	if err != nil {
		return nil, err
	}
	if ok && local.After(at) {
		at, revoked = local, true
	}
	if !revoked || v.LastSeen != nil && !v.LastSeen.Before(at) {
		return nil, nil
	}
	return &protocol.Reason{
		Code: codeRevoked, Gate: "identity",
		Text: "its certificates from before " + pki.At(at).
			String() + " are revoked, and it has not checked in since; what it ran then is shown",
		Next: p.wayBack(v.Host),
	}, nil
}

// wayBack is how a host that was revoked is let in again. Its key is declared, and where the release lists nonces the
// one of the new token has to be among them.
func (p *views) wayBack(host string) string {
	snap, key := p.snapshot.Load(), "FILE"
	if h := snap.rel.Fleet.Hosts[host]; h != nil && h.Pubkey != nil {
		key = command.ShellWord(*h.Pubkey)
	}
	next := "to let it in again, mint a token and put it on the host: nixfleet mint-token --hostname " + host +
		" --host-pubkey " + key + " --org-root-key FILE"
	if snap.nonces != nil {
		next += "; add its nonce to bootstrapNonces and release"
	}
	return next
}

func (p *views) deferrals(*call) (any, error) {
	out := protocol.DeferralsResponse{Deferrals: []protocol.Deferral{}}
	out.Deferrals = append(out.Deferrals, look(p.world, (*rollout.World).Deferrals)...)
	return out, nil
}

func (p *views) rollouts(c *call) (any, error) {
	if err := p.store.Err(); err != nil {
		return nil, err
	}
	query := c.URL.Query()
	all, hosts := query.Get("all") == "true", query.Get("hosts") != "false"
	out := protocol.RolloutsResponse{Rollouts: []protocol.RolloutSummary{}}
	look(p.world, func(w *rollout.World, now time.Time) bool {
		for _, v := range w.Rollouts(now) {
			if (v.Open || all) && c.scopes.channel(v.Channel) {
				var states map[string]rollout.HostState
				if hosts {
					states = w.HostStates(v.RolloutID)
				}
				out.Rollouts = append(out.Rollouts, summary(v, states))
			}
		}
		return true
	})
	return out, nil
}

func summary(v rollout.RolloutView, states map[string]rollout.HostState) protocol.RolloutSummary {
	out := protocol.RolloutSummary{
		RolloutID: v.RolloutID, Channel: v.Channel, CurrentWave: uint32(v.Wave), CreatedAt: protocol.Offset(v.CreatedAt),
		HostStates: map[string]string{}, State: string(v.State), Intent: v.Intent, HaltReason: v.HaltReason,
		Ref: v.ChannelRef,
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

// knownRollout reads the id of the path, which is one of what a database knows.
func knownRollout(c *call, db store.Database) (string, error) {
	id := c.PathValue("id")
	if !fleet.ValidRolloutID(id) {
		return "", bareStatus(http.StatusBadRequest)
	}
	return id, db.Err()
}

func (p *views) lifecycle(c *call) (any, error) {
	id, err := knownRollout(c, p.store)
	if err != nil {
		return nil, err
	}
	v, ok := p.world.view(id)
	if !ok {
		return nil, bareStatus(http.StatusNotFound)
	}
	at := func(t *time.Time) *protocol.OffsetTime {
		if t == nil {
			return nil
		}
		o := protocol.Offset(*t)
		return &o
	}
	return protocol.Lifecycle{
		RolloutID: id, SupersededAt: at(v.SupersededAt), SupersededBy: text(v.SupersededBy), TerminalAt: at(v.TerminalAt),
		Channel: v.Channel, State: string(v.State), HaltReason: v.HaltReason,
	}, nil
}

// terminal are the words of a trace for a dispatch that has ended.
var terminal = map[string]string{
	rollout.DispatchConfirmed: "converged", rollout.DispatchRolledBack: "rolled-back",
	rollout.DispatchCancelled: "cancelled",
}

func (p *views) trace(c *call) (any, error) {
	id, err := knownRollout(c, p.store)
	if err != nil {
		return nil, err
	}
	rows, err := p.store.Trace(c.Context(), id)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, bareStatus(http.StatusNotFound)
	}
	out := protocol.Trace{RolloutID: id, Events: []protocol.TraceEvent{}}
	for _, row := range rows {
		e := protocol.TraceEvent{
			Host: row.Host, Channel: row.Channel, Wave: uint32(row.Wave), TargetClosureHash: row.Closure,
			TargetChannelRef: row.ChannelRef,
			DispatchedAt:     protocol.TraceTime{OffsetTime: protocol.Offset(row.DispatchedAt)},
			TerminalState:    text(terminal[row.State]),
		}
		if e.TerminalState != nil {
			at := protocol.Offset(row.Ended())
			e.TerminalAt = &at
		}
		out.Events = append(out.Events, e)
	}
	return out, nil
}
