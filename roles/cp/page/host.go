package page

import (
	"net/http"
	"net/url"
	"strings"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// hostsPerPage is how many hosts a list shows at once.
const hostsPerPage = 100

// hostList is a part of a list of hosts.
type hostList struct {
	Hosts  []protocol.HostEntry
	Counts protocol.HostCounts
	Bar    bar
	Next   string // address of the next part
	Full   bool   // with the channels, and with why a host waits in words, not by the code alone
}

// hostsOf asks for the part of a list that the query's `after` begins.
func (p *Page) hostsOf(r *http.Request, q client.HostsQuery) (hostList, error) {
	q.Limit, q.After = hostsPerPage, r.URL.Query().Get("after")
	answer, err := p.plane.HostsPage(r.Context(), q)
	if err != nil {
		return hostList{}, err
	}
	list := hostList{Hosts: answer.Hosts, Full: q.Rollout == ""}
	if answer.Counts != nil {
		list.Counts = *answer.Counts
	}
	if answer.Next != "" {
		again := r.URL.Query()
		again.Del("done")
		again.Set("after", answer.Next)
		list.Next = "?" + again.Encode() + "#hosts"
	}
	return list, nil
}

// hostsBody is the list of hosts with its filters.
type hostsBody struct {
	Query    client.HostsQuery
	Wave     string
	States   []string
	List     hostList
	Channels []string
	Filtered bool
}

func (p *Page) hosts(r *http.Request) (*sheet, error) {
	words := r.URL.Query()
	q := client.HostsQuery{
		Host: words.Get("host"), Channel: words.Get("channel"), Tag: words.Get("tag"), State: words.Get("state"),
		Closure: words.Get("closure"), Rollout: words.Get("rollout"), WorstFirst: true,
	}
	if words.Get("wave") != "" {
		wave := int(numberOf(r, "wave"))
		q.Wave = &wave
	}
	body := hostsBody{Query: q, Wave: words.Get("wave"), Filtered: len(words) > 0}
	for _, s := range protocol.Standings {
		body.States = append(body.States, string(s))
	}
	for _, s := range protocol.HostStates {
		body.States = append(body.States, strings.ToLower(string(s)))
	}
	var err error
	if body.List, err = p.hostsOf(r, q); err != nil {
		return nil, err
	}
	body.List.Bar = countsBar(body.List.Counts)
	channels, err := p.plane.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	for _, ch := range channels.Channels {
		body.Channels = append(body.Channels, ch.Name)
	}
	return &sheet{Title: "Hosts", Name: "hosts", Live: true, Body: body}, nil
}

// hostBody is one host.
type hostBody struct {
	*protocol.HostDetail
	Badge   badge
	Done    string
	Retry   bool
	Working bool
	Events  []protocol.Event
}

func (p *Page) host(r *http.Request) (*sheet, error) {
	name := r.PathValue("name")
	detail, err := p.plane.Host(r.Context(), name)
	if err != nil {
		return nil, err
	}
	past, err := p.plane.History(r.Context(), protocol.HistoryQuery{Host: name, Limit: lastEvents})
	if err != nil {
		return nil, err
	}
	body := hostBody{
		HostDetail: detail, Badge: stands(&detail.Host), Done: doneWords[r.URL.Query().Get("done")], Events: past.Events,
		Retry:   detail.Quarantine != nil || detail.Host.Standing == protocol.StandsFailed,
		Working: detail.Agent != nil && detail.Agent.Phase != nil && detail.Agent.Phase.Since != nil,
	}
	return &sheet{Title: detail.Host.Hostname, Name: "host", Live: true, Body: body}, nil
}

// search goes to what the word is: hosts by name, tag or closure, a rollout, or a release.
func (p *Page) search(r *http.Request) (*sheet, error) {
	word := strings.TrimSpace(r.URL.Query().Get("q"))
	if word == "" {
		return &sheet{Place: "/hosts"}, nil
	}
	if len(word) > 200 {
		return nil, refuse(http.StatusBadRequest, "the word is too long", "")
	}
	glob := word
	if !strings.ContainsAny(word, "*?[") {
		glob = "*" + strings.ReplaceAll(word, `\`, `\\`) + "*"
	}
	for _, try := range []struct {
		name, word string
		query      client.HostsQuery
	}{
		{"host", glob, client.HostsQuery{Host: glob}},
		{"tag", word, client.HostsQuery{Tag: word}},
		{"closure", glob, client.HostsQuery{Closure: glob}},
	} {
		try.query.Limit = 2
		found, err := p.plane.HostsPage(r.Context(), try.query)
		if err != nil {
			return nil, err
		}
		switch {
		case len(found.Hosts) == 1 && try.name == "host":
			return &sheet{Place: "/hosts/" + url.PathEscape(found.Hosts[0].Hostname)}, nil
		case len(found.Hosts) > 0:
			return &sheet{Place: find(try.name, try.word)}, nil
		}
	}
	return p.searchReleases(r, word)
}

// searchReleases looks for a rollout or a commit that begins with the word.
func (p *Page) searchReleases(r *http.Request, word string) (*sheet, error) {
	rollouts, err := p.plane.Rollouts(r.Context(), client.RolloutsQuery{All: true, Heads: true})
	if err != nil {
		return nil, err
	}
	for _, s := range rollouts.Rollouts {
		if strings.HasPrefix(s.RolloutID, word) {
			return &sheet{Place: "/rollouts/" + s.RolloutID}, nil
		}
		if commit := s.Ref; strings.HasPrefix(commit, word) {
			return &sheet{Place: "/releases/" + url.PathEscape(commit)}, nil
		}
	}
	return nil, refuse(http.StatusNotFound, "nothing is called "+word,
		"Search finds hosts by name, tag and closure, rollouts by id and releases by commit. * and ? stand for any text.")
}
