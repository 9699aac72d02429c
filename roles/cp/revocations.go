package cp

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// revoke adds a local row. A time in the future is taken back to now: it would lock the
// name out of every certificate to come.
func (o *acts) revoke(c *call) (any, error) {
	var req protocol.RevokeRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	if err := o.store.Err(); err != nil {
		return nil, err
	}
	if req.Hostname == "" {
		return nil, badRequest(http.StatusUnprocessableEntity, "hostname is empty")
	}
	if err := o.mayRevoke(c, req.Hostname); err != nil {
		return nil, err
	}
	now := time.Now()
	by, a := c.caller.CommonName, act{"revoke", req.Hostname, req.Reason}
	row := store.Revocation{Hostname: req.Hostname, NotBefore: now, Reason: req.Reason, RevokedBy: by}
	if req.NotBefore != nil {
		row.NotBefore = req.NotBefore.Time
	}
	if latest := now.Add(pki.ClockSlack); row.NotBefore.After(latest) {
		row.NotBefore = latest
		a.why = strings.TrimSpace(fmt.Sprintf("%s (not before %s was asked for, which is in the future)", a.why,
			req.NotBefore))
	}
	ctx, cancel := context.WithTimeout(c.Context(), actTimeout)
	defer cancel()
	err := o.late(o.store.Revoke(ctx, row, a.entry(by)))
	if err == nil {
		o.waiters.wakeIf(func(host string) bool {
			return host == req.Hostname || pki.AgentName(host, o.cfg.AgentSuffix) == req.Hostname
		})
		if err := o.world.change(ctx, func(w *rollout.World, now time.Time) rollout.Change {
			return w.Revoked(req.Hostname, now)
		}); err != nil { // it is revoked all the same
			o.log.Error().Err(err).Str("host", req.Hostname).Msg("revoked host keeps its slot")
		}
	}
	return o.made(c, a, err)
}

// unrevoke takes local rows back. What the signed list says stays in force.
func (o *acts) unrevoke(c *call) (any, error) {
	var req protocol.UnrevokeRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	if err := o.store.Err(); err != nil {
		return nil, err
	}
	a := act{"unrevoke", req.Hostname, req.Reason}
	ctx, cancel := context.WithTimeout(c.Context(), actTimeout)
	defer cancel()
	n, err := o.store.Unrevoke(ctx, req.Hostname, a.entry(c.caller.CommonName))
	if err != nil {
		return nil, o.late(err)
	}
	since, signed := o.release.snapshot.Load().revoked[req.Hostname]
	out := protocol.UnrevokeResponse{Rows: n}
	if signed {
		at := pki.At(since)
		out.SignedNotBefore = &at
	}
	switch {
	case n == 0 && signed:
		return nil, &Refusal{Status: http.StatusConflict, Code: "signed", Text: "the signed list revokes " + req.Hostname +
			", and there is no local row", Hint: "take the entry out of revocations of the fleet and release"}
	case n == 0:
		return nil, &Refusal{Status: http.StatusNotFound, Code: "not-revoked", Text: "there is no local row of that name",
			Hint: "nixfleet revocations list prints the names as they are written"}
	}
	_, err = o.made(c, a, nil)
	return out, err
}

// revocations lists local rows and the signed list, with whom each concerns.
func (p *views) revocations(c *call) (any, error) {
	if err := p.store.Err(); err != nil {
		return nil, err
	}
	rows, err := p.store.RevocationRows(c.Context())
	if err != nil {
		return nil, err
	}
	snap := p.snapshot.Load()
	out := protocol.RevocationsResponse{Revocations: []protocol.RevocationView{}}
	for _, r := range rows {
		v := protocol.RevocationView{
			Hostname: r.Hostname, Written: r.Written, Reason: r.Reason, RevokedBy: r.RevokedBy, RevokedAt: r.RevokedAt,
			Source: protocol.RevokedLocally,
		}
		if r.Readable {
			at := pki.At(r.NotBefore)
			v.NotBefore = &at
		}
		out.Revocations = append(out.Revocations, v)
	}
	if list := snap.rel.Revocations; list != nil {
		for _, r := range list.Revocations {
			v := protocol.RevocationView{Hostname: r.Hostname, NotBefore: &r.NotBefore, Source: protocol.RevokedBySignedList}
			if r.Reason != nil {
				v.Reason = *r.Reason
			}
			if r.RevokedBy != nil {
				v.RevokedBy = *r.RevokedBy
			}
			out.Revocations = append(out.Revocations, v)
		}
	}
	operators := map[string]bool{}
	for _, v := range p.door.operators.all() {
		operators[v.Name] = true
	}
	for i := range out.Revocations {
		v := &out.Revocations[i]
		v.Concerns, v.Meant = concerns(v.Hostname, snap, p.cfg.AgentSuffix, operators)
	}
	return out, nil
}

// bareName is the host in the name of an agent's certificate, and any other name as it is.
func bareName(name, suffix string) string {
	if host, ok := strings.CutPrefix(name, "agent-"); ok {
		if host, ok = strings.CutSuffix(host, "."+suffix); ok {
			return host
		}
	}
	return name
}

// concerns says whom a revocation of this name refuses: a host of the fleet, an operator
// that has called since the start, a name that differs from a host's by case or blanks
// only, so that it refuses nobody, or nobody who is known.
func concerns(
	name string, snap *snapshot, suffix string, operators map[string]bool,
) (whom protocol.Concerned, meant string) {
	hosts := snap.rel.Fleet.Hosts
	switch {
	case hosts[bareName(name, suffix)] != nil:
		return protocol.ConcernsHost, ""
	case operators[name]:
		return protocol.ConcernsOperator, ""
	}
	tidy := bareName(strings.ToLower(strings.Join(strings.Fields(name), "")), suffix)
	for host := range hosts {
		if strings.ToLower(host) == tidy && (meant == "" || host < meant) {
			meant = host
		}
	}
	if meant != "" {
		return protocol.ConcernsNobody, meant
	}
	return protocol.ConcernsUnknown, ""
}

// nameUnmatched says of each local row, once, that it refuses nobody or nobody who is
// known: a revocation that was mistyped looks like one that works.
func (t *ticker) nameUnmatched(rows map[string]time.Time) {
	snap := t.world.snapshot.Load()
	if snap == nil {
		return
	}
	names := make([]string, 0, len(rows))
	for name := range rows {
		if !t.named[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		whom, meant := concerns(name, snap, t.cfg.AgentSuffix, nil)
		if whom == protocol.ConcernsHost {
			continue
		}
		t.named[name] = true
		line := t.log.Warn().Str("name", printed(name))
		if meant != "" {
			line.Str("meant", meant).
				Str("hint", "nixfleet revocations undo NAME --reason TEXT, then nixfleet revoke "+meant+" --reason TEXT").
				Msg("revocation refuses nobody: its name differs from a host's")
			continue
		}
		line.Str("hint", "nothing to do if an operator has this name; nixfleet revocations list").
			Msg("revocation is of no host of the fleet")
	}
}
