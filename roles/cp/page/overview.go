package page

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	// namedHosts is how many hosts a page names before it links to the list of them.
	namedHosts = 8
	// namedCertificates is how many of them are asked for.
	namedCertificates = 200
)

// overview is what there is to know at a glance.
type overview struct {
	Numbers  []number
	All      bar
	Persons  []need
	Lanes    []lane
	Channels []channelRow
}

// number is a count with the list of what it counts.
type number struct {
	Word string
	Tone tone
	N    int
	Link string
}

// need is something that goes on only when a person does something.
type need struct {
	Badge             badge
	What, Link        string
	Why, Next, Detail string
}

// lane is a rollout with its waves beside each other.
type lane struct {
	ID, Channel, Ref string
	State            badge
	Why              string
	Created          *moment
	Waves            []waveBox
}

// waveBox is one wave of a lane.
type waveBox struct {
	N             int // from 1
	Canary        bool
	State         badge
	Bar           bar
	Link          string
	Soaks         string
	Opened, Until *moment
}

type channelRow struct {
	protocol.ChannelEntry
	Bar   bar
	State badge
	Stale *moment // when its release is or was too old
}

func (p *Page) overview(r *http.Request) (*sheet, error) {
	ctx := r.Context()
	channels, err := p.plane.Channels(ctx)
	if err != nil {
		return nil, err
	}
	rollouts, err := p.plane.Rollouts(ctx, client.RolloutsQuery{Heads: true})
	if err != nil {
		return nil, err
	}
	body := overview{}
	var all protocol.HostCounts
	for _, ch := range channels.Channels {
		all = summed(all, ch.Counts)
		body.Channels = append(body.Channels, p.channelRow(ch))
	}
	body.All, body.Numbers = countsBar(all), numbers(all)
	for i := range rollouts.Rollouts {
		l, err := p.lane(r, &rollouts.Rollouts[i])
		if err != nil {
			return nil, err
		}
		body.Lanes = append(body.Lanes, *l)
	}
	if body.Persons, err = p.persons(r, all, body.Channels, rollouts.Rollouts); err != nil {
		return nil, err
	}
	return &sheet{Title: "Overview", Name: "overview", Live: true, Body: body}, nil
}

func summed(a, b protocol.HostCounts) protocol.HostCounts {
	return protocol.HostCounts{Hosts: a.Hosts + b.Hosts, Failed: a.Failed + b.Failed, Silent: a.Silent + b.Silent,
		Moving: a.Moving + b.Moving, Waiting: a.Waiting + b.Waiting, Converged: a.Converged + b.Converged}
}

func numbers(c protocol.HostCounts) []number {
	out := []number{{"hosts", "", c.Hosts, "/hosts"}}
	for _, s := range counted {
		word := standing(s)
		out = append(out, number{word.Word, word.Tone, c.Of(s), find("state", string(s))})
	}
	return out
}

func (p *Page) channelRow(ch protocol.ChannelEntry) channelRow {
	row := channelRow{ChannelEntry: ch, Bar: countsBar(ch.Counts, "channel", ch.Name), State: badgeOf(ch.RolloutState)}
	if ch.SignedAt != nil && ch.FreshnessWindowMinutes > 0 {
		row.Stale = p.moment(ch.SignedAt.Add(fleet.Minutes(ch.FreshnessWindowMinutes)))
	}
	return row
}

// lane asks for the waves of a rollout.
func (p *Page) lane(r *http.Request, s *protocol.RolloutSummary) (*lane, error) {
	answer, err := p.plane.Waves(r.Context(), s.RolloutID)
	if err != nil {
		return nil, err
	}
	l := &lane{ID: s.RolloutID, Channel: s.Channel, Ref: s.Ref, State: stateOf(s), Why: s.Why(),
		Created: p.moment(s.CreatedAt)}
	for _, w := range answer.Waves {
		n := strconv.Itoa(int(w.Wave))
		box := waveBox{
			N: int(w.Wave) + 1, Canary: w.Wave == 0 && len(answer.Waves) > 1, Opened: p.moment(w.OpenedAt),
			Until: p.moment(w.SoakingUntil), Link: find("rollout", s.RolloutID, "wave", n),
			Bar: statesBar(w.States, "rollout", s.RolloutID, "wave", n), State: waveState(&w),
		}
		if w.SoakSecs > 0 {
			box.Soaks = duration(time.Duration(w.SoakSecs) * time.Second)
		}
		l.Waves = append(l.Waves, box)
	}
	return l, nil
}

// waveState is how a wave stands: the worst that holds.
func waveState(w *protocol.RolloutWave) badge {
	in := func(states ...protocol.HostState) (n int) {
		for _, s := range states {
			n += w.States[string(s)]
		}
		return n
	}
	switch {
	case in(protocol.HostFailed, protocol.HostReverted) > 0:
		return badge{"failed", bad}
	case !w.Open:
		return badge{"not open yet", wait}
	case in(protocol.HostDispatched, protocol.HostActivating, protocol.HostConfirmWindow) > 0:
		return badge{"switching", move}
	case in(protocol.HostHealthy) > 0:
		return badge{"soaking", move}
	case in(protocol.HostQueued, protocol.HostDeferred) > 0:
		return badge{"waiting", wait}
	}
	return badge{"done", good}
}

// stateOf is the state of a rollout; one that somebody paused says so.
func stateOf(s *protocol.RolloutSummary) badge {
	if s.Hold != nil && protocol.RolloutState(s.State).Open() {
		return badgeOf(paused)
	}
	return badgeOf(cmp.Or(s.State, "unknown"))
}

// persons is who needs somebody, the most urgent first. Hosts that the counts do not have are not asked for.
func (p *Page) persons(
	r *http.Request, counts protocol.HostCounts, channels []channelRow, rollouts []protocol.RolloutSummary,
) ([]need, error) {
	var needs []need
	for i := range rollouts {
		s := &rollouts[i]
		if state := stateOf(s); state.Tone == bad || state.Word == paused {
			needs = append(needs, need{Badge: state, What: "rollout of " + s.Channel, Link: "/rollouts/" + s.RolloutID,
				Why: s.Why(), Next: "look at the rollout, then resume or cancel it, or push a release that mends it"})
		}
	}
	for _, standing := range []protocol.Standing{protocol.StandsFailed, protocol.StandsSilent} {
		if counts.Of(standing) == 0 {
			continue
		}
		found, err := p.plane.HostsPage(r.Context(), client.HostsQuery{State: string(standing), Limit: namedHosts})
		if err != nil {
			return nil, err
		}
		for i := range found.Hosts {
			needs = append(needs, hostNeed(&found.Hosts[i]))
		}
		if found.Counts != nil && found.Counts.Hosts > len(found.Hosts) {
			needs = append(needs, need{Badge: badgeOf(string(standing)), Link: find("state", string(standing)),
				What: fmt.Sprintf("%d more", found.Counts.Hosts-len(found.Hosts))})
		}
	}
	for _, ch := range channels {
		if ch.Stale != nil && !ch.Stale.Future {
			needs = append(needs, need{Badge: badge{"stale", bad}, What: "channel " + ch.Name, Link: "#channels",
				Why:  "its release became too old " + ch.Stale.Text + ": hosts take no target from it",
				Next: "release again: nixfleet release"})
		}
	}
	ending, err := p.ending(r)
	return slices.Concat(needs, ending), err
}

// hostNeed is what a host needs.
func hostNeed(h *protocol.HostEntry) need {
	n := need{Badge: stands(h), What: h.Hostname, Link: "/hosts/" + h.Hostname}
	if h.Reason != nil {
		n.Why, n.Next = h.Reason.Text, h.Reason.Next
	}
	if n.Why == "" && h.LastCheckinAt == nil {
		n.Why = "nothing was heard of it since the control plane started"
	}
	return n
}

// ending are the certificates that have ended, and those that end soon and that a person renews.
func (p *Page) ending(r *http.Request) ([]need, error) {
	answer, err := p.plane.Certificates(r.Context(), namedCertificates)
	if forbidden(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var needs []need
	for i := range answer.Certificates {
		c := &answer.Certificates[i]
		if word := p.ends(c); word.Tone != good {
			needs = append(needs, need{Badge: word, What: strings.TrimSpace(c.Kind + " certificate " + c.Name),
				Link: "/certificates", Why: "it ends " + p.moment(c.NotAfter).Text})
		}
	}
	if len(needs) > namedHosts {
		more := command.Plural(len(needs)-namedHosts, "more certificate")
		needs = append(needs[:namedHosts:namedHosts], need{Badge: badge{"ends soon", wait}, What: more,
			Link: "/certificates"})
	}
	return needs, nil
}
