package cp

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// maxPage bounds the hosts of one page.
const maxPage = 10_000

// hostFilter is what a caller of GET /v1/hosts wants to see. Without a query
// that is every host, as in v1.
type hostFilter struct {
	host, channel, tag, state string // globs of path.Match; empty for any
	closure                   string // glob of what it runs or should run
	rollout                   string // id; empty for any
	wave                      int    // of its rollout; -1 for any
	worst                     bool   // first
	paged                     bool
	limit                     int
	after                     string
}

// hostFilterOf reads the query of GET /v1/hosts.
func hostFilterOf(q url.Values) (f hostFilter, err error) {
	f = hostFilter{host: q.Get("host"), channel: q.Get("channel"), tag: q.Get("tag"),
		state: strings.ToLower(q.Get("state")), after: q.Get("after"), paged: len(q) > 0,
		closure: q.Get("closure"), rollout: q.Get("rollout"), wave: -1}
	for _, glob := range []string{f.host, f.channel, f.tag, f.state, f.closure} {
		if _, err := path.Match(glob, ""); err != nil {
			return f, refused(http.StatusBadRequest, "bad-glob", "%q is not a pattern: use *, ? and [a-z]", glob)
		}
	}
	switch q.Get("order") {
	case "", "name":
	case "worst":
		f.worst = true
	default:
		return f, refused(http.StatusBadRequest, "bad-order", "order is name or worst")
	}
	if q.Has("wave") {
		n, err := strconv.Atoi(q.Get("wave"))
		if err != nil || n < 0 {
			return f, refused(http.StatusBadRequest, "bad-wave", "wave is a number from 0")
		}
		f.wave = n
	}
	if q.Has("limit") {
		n, err := strconv.Atoi(q.Get("limit"))
		if err != nil || n < 1 {
			return f, refused(http.StatusBadRequest, "bad-limit", "limit is a number from 1 to %d", maxPage)
		}
		f.limit = min(n, maxPage)
	}
	return f, nil
}

func matches(glob, word string) bool {
	ok, err := path.Match(glob, word)
	return glob == "" || err == nil && ok
}

// wants reports whether a host is among those that are asked for.
func (f *hostFilter) wants(v *rollout.HostView, tags []string) bool {
	_, ours := stateWords(v.State)
	word := strings.ToLower(cmp.Or(ours, string(v.State), "none"))
	return matches(f.host, v.Host) && matches(f.channel, v.Channel) &&
		(matches(f.state, word) || matches(f.state, string(standing(v)))) &&
		(matches(f.closure, v.Closure) || matches(f.closure, v.DeclaredClosure)) &&
		(f.rollout == "" || f.rollout == v.RolloutID) && (f.wave < 0 || v.RolloutID != "" && f.wave == v.Wave) &&
		(f.tag == "" || slices.ContainsFunc(tags, func(tag string) bool { return matches(f.tag, tag) }))
}

// standing is how a host stands, in one word: the worst that holds.
func standing(v *rollout.HostView) protocol.Standing {
	switch {
	case v.State == rollout.Failed, v.State == rollout.Reverted, v.Quarantined != "", v.FailingSince != nil,
		v.Twins != nil:
		return protocol.StandsFailed
	case !v.Online:
		return protocol.StandsSilent
	case v.Converged():
		return protocol.StandsConverged
	case v.State == rollout.Dispatched, v.State == rollout.Activating, v.State == rollout.ConfirmWindow:
		return protocol.StandsMoving
	}
	return protocol.StandsWaiting
}

// place is where a host stands in the list that is asked for; it compares as text.
func (f *hostFilter) place(v *rollout.HostView) string {
	if !f.worst {
		return v.Host
	}
	return strconv.Itoa(slices.Index(protocol.Standings, standing(v))) + "." + v.Host
}

// page takes the hosts that are asked for out of all of them, and tells of the rest.
func (f *hostFilter) page(all []rollout.HostView, tags func(host string) []string) (
	page []rollout.HostView, counts *protocol.HostCounts, next string,
) {
	if !f.paged {
		return all, nil, ""
	}
	counts = &protocol.HostCounts{}
	for i := range all {
		if v := &all[i]; f.wants(v, tags(v.Host)) {
			counts.Add(standing(v))
			if f.after == "" || f.place(v) > f.after {
				page = append(page, *v)
			}
		}
	}
	if f.worst {
		slices.SortFunc(page, func(a, b rollout.HostView) int { return cmp.Compare(f.place(&a), f.place(&b)) })
	}
	if f.limit > 0 && len(page) > f.limit {
		page = page[:f.limit]
		next = f.place(&page[f.limit-1])
	}
	return page, counts, next
}

func (p *views) hosts(c *call) (any, error) {
	filter, err := hostFilterOf(c.URL.Query())
	if err != nil {
		return nil, err
	}
	verified, err := p.store.VerifiedReports(c.Context())
	if err != nil {
		return nil, err
	}
	if v, ok := p.world.view(filter.rollout); ok {
		filter.rollout = v.RolloutID // the newest of its ids, which its hosts bear
	}
	declared := p.snapshot.Load().rel.Fleet.Hosts
	tags := func(host string) []string {
		if h := declared[host]; h != nil {
			return h.Tags
		}
		return nil
	}
	out := protocol.HostsResponse{}
	facts := map[string]rollout.HostFacts{}
	views := look(p.world, func(w *rollout.World, now time.Time) (page []rollout.HostView) {
		all := slices.DeleteFunc(p.seen.present(w.Hosts(now), now), func(v rollout.HostView) bool {
			return !c.scopes.channel(v.Channel)
		})
		page, out.Counts, out.Next = filter.page(all, tags)
		for i := range page {
			// The list explains what waits; a converged host needs no sentence.
			if !page[i].Converged() {
				if v, ok := w.Host(page[i].Host, now); ok {
					v.Online = page[i].Online
					page[i] = v
				}
			}
			if len(page) <= mostReleases {
				facts[page[i].Host] = w.Facts(page[i].Host)
			}
		}
		return page
	})
	if out.Hosts, err = p.entries(c.Context(), views, facts, verified); err != nil {
		return nil, err
	}
	return out, nil
}

// entries are hosts in the words of the list.
func (p *views) entries(
	ctx context.Context, views []rollout.HostView, facts map[string]rollout.HostFacts, verified map[string]uint32,
) ([]protocol.HostEntry, error) {
	runs, err := p.releases(ctx, views)
	if err != nil {
		return nil, err
	}
	out := make([]protocol.HostEntry, 0, len(views))
	for _, v := range views {
		e := p.entry(v, verified[v.Host])
		e.Running = runs[v.Host]
		if f := facts[v.Host]; !f.Since.IsZero() {
			e.Since = moment(f.Since)
		}
		e.Canary = facts[v.Host].Waves > 1 && v.Wave == 0
		shut, err := p.shutOut(ctx, v)
		if err != nil {
			return nil, err
		}
		if shut != nil {
			e.Reason = shut
		}
		out = append(out, e)
	}
	return out, nil
}

// mostReleases is for how many hosts of one answer the database is asked what they confirmed when: the list of a
// large fleet without a page has not got it, nor what only one host at a time is asked about.
const mostReleases = 1000

// releases says of which release hosts run, and since when they do.
func (p *views) releases(ctx context.Context, views []rollout.HostView) (map[string]*protocol.HostRelease, error) {
	if len(views) > mostReleases {
		return nil, nil
	}
	names, runs := make([]string, 0, len(views)), map[string]*protocol.HostRelease{}
	for _, v := range views {
		if v.Closure != "" {
			names = append(names, v.Host)
			runs[v.Host] = &protocol.HostRelease{}
		}
	}
	confirmed, err := p.store.Confirmations(ctx, names)
	if err != nil {
		return nil, err
	}
	last := map[string]store.Confirmation{}
	for _, c := range confirmed {
		last[c.Host] = c
	}
	commit := p.snapshot.Load().rel.Commit
	for _, v := range views {
		// Something that was confirmed before and was left meanwhile is there by another way.
		if c, ok := last[v.Host]; ok && c.Closure == v.Closure {
			runs[v.Host] = &protocol.HostRelease{Commit: c.ChannelRef, Since: moment(c.At)}
		}
		if run := runs[v.Host]; run != nil && v.Converged() {
			run.Commit = commit
		}
	}
	return runs, nil
}

func (p *views) entry(v rollout.HostView, verified uint32) protocol.HostEntry {
	e := protocol.HostEntry{
		Hostname: v.Host, Channel: v.Channel, DeclaredClosureHash: text(v.DeclaredClosure),
		CurrentClosureHash: text(v.Closure),
		LastRolloutID:      text(v.RolloutID), Converged: v.Converged(), VerifiedEventCount: verified,
		PendingReboot: v.PendingReboot, QuarantinedClosure: text(v.Quarantined), Online: &v.Online,
	}
	v1, ours := stateWords(v.State)
	e.RolloutState, e.State, e.Standing = text(v1), text(ours), standing(&v)
	if v.RolloutID != "" {
		wave := uint32(v.Wave)
		e.Wave = &wave
	}
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
	if t := v.Twins; t != nil {
		e.Clone = &protocol.HostClone{Since: pki.At(t.Since), BootIDs: t.BootIDs[:], Held: t.Held}
	}
	if v.LastSeen != nil {
		at := pki.At(v.LastSeen.Truncate(time.Millisecond))
		e.LastCheckinAt = &at
	}
	if seen, ok := p.seen.of(v.Host); ok {
		e.LastUptimeSecs, e.PendingClosureHash, e.Held = seen.uptime, text(seen.pending), seen.held
		e.Trouble = text(seen.word.Trouble())
	}
	if h := p.snapshot.Load().rel.Fleet.Hosts[v.Host]; h != nil && h.Pin != nil {
		e.Pin = &protocol.HostPin{Commit: h.Pin.Commit, Reason: h.Pin.Reason, ExpiresAt: h.Pin.ExpiresAt}
	}
	if v.Reason.Code != "" && !v.Converged() {
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
