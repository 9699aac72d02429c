package cp

import (
	"net/http"
	"strconv"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// What was: reports of hosts, the event log backwards, and what operators did.

const (
	usualLines = 100
	mostLines  = 500
)

// lines reads how many lines of what was are asked for, and before which one.
func lines(c *call) (limit int, before int64, err error) {
	query := c.URL.Query()
	limit = usualLines
	if query.Has("limit") {
		if limit, err = strconv.Atoi(query.Get("limit")); err != nil || limit < 1 {
			return 0, 0, refused(http.StatusBadRequest, "bad-limit", "limit is a number from 1 to %d", mostLines)
		}
		limit = min(limit, mostLines)
	}
	if query.Has("before") {
		if before, err = strconv.ParseInt(query.Get("before"), 10, 64); err != nil || before < 0 {
			return 0, 0, refused(http.StatusBadRequest, "bad-before", "before is the number of an event")
		}
	}
	return limit, before, nil
}

// history reads the event log from its end.
func (p *views) history(c *call) (any, error) {
	if err := p.store.Err(); err != nil {
		return nil, err
	}
	limit, before, err := lines(c)
	if err != nil {
		return nil, err
	}
	query := c.URL.Query()
	q := protocol.HistoryQuery{
		Rollout: query.Get("rollout"), Host: query.Get("host"), Channel: query.Get("channel"), Kind: query.Get("kind"),
		Actor: query.Get("actor"), Before: before, Limit: limit,
	}
	if q.Rollout != "" && !fleet.ValidRolloutID(q.Rollout) {
		return nil, badRequest(http.StatusBadRequest, "rollout: not 64 hexadecimal digits")
	}
	events, err := p.store.History(c.Context(), q)
	if err != nil {
		return nil, err
	}
	out := protocol.History{Events: append([]protocol.Event{}, c.scopes.events(events)...)}
	if len(events) == limit {
		out.Before = events[limit-1].Seq
	}
	return out, nil
}

// audit reads what operators did.
func (p *views) audit(c *call) (any, error) {
	if err := p.store.Err(); err != nil {
		return nil, err
	}
	limit, before, err := lines(c)
	if err != nil {
		return nil, err
	}
	entries, err := p.store.AuditLog(c.Context(), before, limit)
	if err != nil {
		return nil, err
	}
	out := protocol.Audit{Entries: append([]protocol.AuditEntry{}, entries...)}
	if len(entries) == limit {
		out.Before = entries[limit-1].Seq
	}
	return out, nil
}

// hostReports lists the newest reports, of one host where the query names it.
func (p *views) hostReports(c *call) (any, error) {
	if err := p.store.Err(); err != nil {
		return nil, err
	}
	limit, query := 15, c.URL.Query()
	if query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 0 {
			return nil, bareStatus(http.StatusBadRequest)
		}
		limit = min(max(n, 1), 200)
	}
	reports, err := p.store.Reports(c.Context(), query.Get("host"), limit)
	if err != nil {
		return nil, err
	}
	out := protocol.HostReportsResponse{Reports: []protocol.HostReport{}}
	for _, rep := range reports {
		out.Reports = append(out.Reports, reportOfRow(rep))
	}
	return out, nil
}
