package page

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	// lastEvents is how many lines of the event log a page ends with.
	lastEvents = 30
	// nextMoves is how many of the moves to come are named.
	nextMoves = 20
)

// rolloutBody is one rollout.
type rolloutBody struct {
	Lane    lane
	Actions []string // what may be done with it
	Done    string   // what was done just now
	Chart   *chart
	Next    *next
	Hosts   hostList
	Events  []protocol.Event
}

// next is what comes, from the plan.
type next struct {
	Ends    *moment
	State   badge
	Stops   *protocol.Reason
	Waves   []protocol.PlanWave
	Moves   []protocol.PlanMove
	More    int // moves that are not named
	Blocked []blocked
}

// rolloutOf finds a rollout by its id, or by the beginning of it.
func (p *Page) rolloutOf(r *http.Request) (*protocol.RolloutSummary, error) {
	id := r.PathValue("id")
	answer, err := p.plane.Rollouts(r.Context(), client.RolloutsQuery{All: true, Heads: true})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(answer.Rollouts, func(s protocol.RolloutSummary) bool { return s.RolloutID == id })
	if i < 0 && len(id) >= 8 {
		i = slices.IndexFunc(answer.Rollouts, func(s protocol.RolloutSummary) bool {
			return strings.HasPrefix(s.RolloutID, id)
		})
	}
	if i < 0 {
		return nil, refuse(http.StatusNotFound, "no rollout that is remembered has this id",
			"The list of rollouts has them all.")
	}
	return &answer.Rollouts[i], nil
}

func (p *Page) rollout(r *http.Request) (*sheet, error) {
	s, err := p.rolloutOf(r)
	if err != nil {
		return nil, err
	}
	l, err := p.lane(r, s)
	if err != nil {
		return nil, err
	}
	body := rolloutBody{Lane: *l, Actions: actionsOf(s), Done: doneWords[r.URL.Query().Get("done")]}
	if body.Hosts, err = p.hostsOf(r, client.HostsQuery{Rollout: s.RolloutID, WorstFirst: true}); err != nil {
		return nil, err
	}
	past, err := p.plane.History(r.Context(), protocol.HistoryQuery{Rollout: s.RolloutID, Limit: lastEvents})
	if err != nil {
		return nil, err
	}
	body.Events = past.Events
	if body.Chart, err = p.chartOf(r, s, l); err != nil {
		return nil, err
	}
	if protocol.RolloutState(s.State).Open() {
		if body.Next, err = p.next(r, s); err != nil && !forbidden(err) {
			return nil, err
		}
	}
	return &sheet{Title: "Rollout of " + s.Channel, Name: "rollout", Live: true, Body: body}, nil
}

// next is what the plan says of the rollout's channel.
func (p *Page) next(r *http.Request, s *protocol.RolloutSummary) (*next, error) {
	plan, err := p.plane.Plan(r.Context(), nil)
	if err != nil {
		return nil, err
	}
	n := &next{}
	for _, x := range plan.Channels {
		if x.Channel == s.Channel {
			n.State, n.Stops, n.Ends = badgeOf(x.State), x.Reason, p.moment(x.ConvergedAt)
		}
	}
	for _, x := range plan.Waves {
		if x.Channel == s.Channel && x.At.After(plan.At.Time) {
			n.Waves = append(n.Waves, x)
		}
	}
	for _, x := range plan.Moves {
		switch {
		case x.Channel != s.Channel:
		case len(n.Moves) < nextMoves:
			n.Moves = append(n.Moves, x)
		default:
			n.More++
		}
	}
	for _, x := range plan.Blocked {
		if x.Channel == s.Channel {
			n.block(x)
		}
	}
	return n, nil
}

// blocked are hosts that wait for the same.
type blocked struct {
	Reason protocol.Reason
	Hosts  []string // the first of them
	More   int
}

// block adds a host to those that wait for the same.
func (n *next) block(x protocol.PlanBlocked) {
	i := slices.IndexFunc(n.Blocked, func(b blocked) bool { return b.Reason.Text == x.Reason.Text })
	if i < 0 {
		if len(n.Blocked) == namedHosts {
			return // the list of hosts has them all
		}
		i, n.Blocked = len(n.Blocked), append(n.Blocked, blocked{Reason: x.Reason})
	}
	if b := &n.Blocked[i]; len(b.Hosts) < namedHosts {
		b.Hosts = append(b.Hosts, x.Host)
	} else {
		b.More++
	}
}

// chartOf draws how far a rollout came; nil where nothing was dispatched.
func (p *Page) chartOf(r *http.Request, s *protocol.RolloutSummary, l *lane) (*chart, error) {
	trace, err := p.plane.Trace(r.Context(), s.RolloutID)
	var refusal *client.Error
	if errors.As(err, &refusal) && refusal.Status == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	hosts := 0
	for _, w := range l.Waves {
		hosts += w.Bar.Of
	}
	return draw(trace.Events, s.CreatedAt.Time, p.now(), hosts), nil
}

// rolloutsBody is the list of rollouts.
type rolloutsBody struct{ Rows []rolloutRow }

type rolloutRow struct {
	protocol.RolloutSummary
	Badge badge
}

func (p *Page) rollouts(r *http.Request) (*sheet, error) {
	answer, err := p.plane.Rollouts(r.Context(), client.RolloutsQuery{All: true, Heads: true})
	if err != nil {
		return nil, err
	}
	body := rolloutsBody{}
	for i := range answer.Rollouts {
		s := &answer.Rollouts[i]
		body.Rows = append(body.Rows, rolloutRow{*s, stateOf(s)})
	}
	return &sheet{Title: "Rollouts", Name: "rollouts", Live: true, Body: body}, nil
}

// number reads a number of the query; what is not one is 0.
func numberOf(r *http.Request, name string) int64 {
	n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	if err != nil {
		return 0
	}
	return max(n, 0)
}
