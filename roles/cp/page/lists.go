package page

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// linesPerPage is how many lines of a log are shown at once.
const linesPerPage = 100

// eventsBody is the event log with its filters.
type eventsBody struct {
	Query  protocol.HistoryQuery
	Kinds  []string
	Events []protocol.Event
	Older  string
}

// kinds are those of events that people filter by.
var kinds = []string{
	protocol.LogOpened, protocol.LogRenewed, protocol.LogSuperseded, protocol.LogWaveOpened, protocol.LogConverged,
	protocol.LogHalted, protocol.LogReverting, protocol.LogReverted, protocol.LogPaused, protocol.LogResumed,
	protocol.LogCancelled, protocol.LogDispatched, protocol.LogLeaseRenewed, protocol.LogLeaseExpired, protocol.LogHost,
	protocol.LogQuarantined, protocol.LogQuarantineCleared, protocol.LogRetry, protocol.LogCompliance,
	protocol.LogFrozen, protocol.LogThawed,
}

func (p *Page) events(r *http.Request) (*sheet, error) {
	words := r.URL.Query()
	q := protocol.HistoryQuery{
		Rollout: words.Get("rollout"), Host: words.Get("host"), Channel: words.Get("channel"), Kind: words.Get("kind"),
		Actor: words.Get("actor"), Before: numberOf(r, "before"), Limit: linesPerPage,
	}
	past, err := p.plane.History(r.Context(), q)
	if err != nil {
		return nil, err
	}
	body := eventsBody{Query: q, Kinds: kinds, Events: past.Events, Older: older(r, past.Before)}
	return &sheet{Title: "Events", Name: "event-log", Live: q.Before == 0, Body: body}, nil
}

// older is the address of the next page of a log.
func older(r *http.Request, before int64) string {
	if before == 0 {
		return ""
	}
	words := r.URL.Query()
	words.Set("before", strconv.FormatInt(before, 10))
	return "?" + words.Encode()
}

type auditBody struct {
	Entries []protocol.AuditEntry
	Older   string
}

func (p *Page) audit(r *http.Request) (*sheet, error) {
	log, err := p.plane.Audit(r.Context(), numberOf(r, "before"), linesPerPage)
	if err != nil {
		return nil, err
	}
	body := auditBody{Entries: log.Entries, Older: older(r, log.Before)}
	return &sheet{Title: "What operators did", Name: "audit", Body: body}, nil
}

type certificatesBody struct {
	Rows []certificateRow
	More int // certificates of agents that are not shown
}

type certificateRow struct {
	protocol.CertificateView
	Badge badge
}

func (p *Page) certificates(r *http.Request) (*sheet, error) {
	answer, err := p.plane.Certificates(r.Context(), namedCertificates)
	if err != nil {
		return nil, err
	}
	body := certificatesBody{More: answer.Agents}
	for _, c := range answer.Certificates {
		if c.Kind == protocol.CertificateAgent {
			body.More--
		}
		body.Rows = append(body.Rows, certificateRow{c, p.ends(&c)})
	}
	return &sheet{Title: "Certificates", Name: "certificates", Body: body}, nil
}

// ends is how a certificate stands. Agents renew theirs by themselves, at half of its life.
func (p *Page) ends(c *protocol.CertificateView) badge {
	switch left := c.NotAfter.Sub(p.now()); {
	case left <= 0:
		return badge{"ended", bad}
	case left <= protocol.CertificateEndsSoon && c.Kind == protocol.CertificateAgent:
		return badge{"renewed by its agent", good}
	case left <= protocol.CertificateEndsSoon:
		return badge{"ends soon", wait}
	}
	return badge{"good", good}
}

// releasesBody is the list of releases: those in force, and those whose rollouts are
// remembered.
type releasesBody struct{ Rows []releaseRow }

type releaseRow struct {
	Commit   string
	InForce  []string // channels
	Rollouts []rolloutRow
	At       *moment
}

// releasesOf are all that are known, the newest first.
func (p *Page) releasesOf(r *http.Request) ([]releaseRow, error) {
	channels, err := p.plane.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	rollouts, err := p.plane.Rollouts(r.Context(), client.RolloutsQuery{All: true, Heads: true})
	if err != nil {
		return nil, err
	}
	var rows []releaseRow
	row := func(commit string) *releaseRow {
		i := slices.IndexFunc(rows, func(row releaseRow) bool { return row.Commit == commit })
		if i < 0 {
			i, rows = len(rows), append(rows, releaseRow{Commit: commit})
		}
		return &rows[i]
	}
	for _, ch := range channels.Channels {
		if ch.DeclaredCICommit != nil {
			of := row(*ch.DeclaredCICommit)
			of.InForce, of.At = append(of.InForce, ch.Name), p.moment(ch.SignedAt)
		}
	}
	for i := range rollouts.Rollouts {
		s := &rollouts.Rollouts[i]
		if commit := s.Ref; commit != "" {
			of := row(commit)
			of.Rollouts = append(of.Rollouts, rolloutRow{*s, stateOf(s)})
			if of.At == nil {
				of.At = p.moment(s.CreatedAt)
			}
		}
	}
	return rows, nil
}

func (p *Page) releases(r *http.Request) (*sheet, error) {
	rows, err := p.releasesOf(r)
	if err != nil {
		return nil, err
	}
	return &sheet{Title: "Releases", Name: "releases", Live: true, Body: releasesBody{rows}}, nil
}

func (p *Page) release(r *http.Request) (*sheet, error) {
	rows, err := p.releasesOf(r)
	if err != nil {
		return nil, err
	}
	commit := r.PathValue("commit")
	for _, row := range rows {
		if row.Commit == commit {
			return &sheet{Title: "Release " + url.PathEscape(commit[:min(12, len(commit))]), Name: "release", Live: true,
				Body: row}, nil
		}
	}
	return nil, refuse(http.StatusNotFound, "no release that is remembered has this commit", "")
}
