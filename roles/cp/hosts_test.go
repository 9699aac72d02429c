package cp

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// names are those of a page's hosts.
func names(page *protocol.HostsResponse) string {
	var all []string
	for _, h := range page.Hosts {
		all = append(all, h.Hostname)
	}
	return strings.Join(all, " ")
}

func TestHostsArePagedAndFiltered(t *testing.T) {
	e := newEstate(t, "a1", "a2", "b1", "b2", "c1")
	e.fleet.Hosts["b1"].Tags, e.fleet.Hosts["b2"].Tags = []string{"web"}, []string{"db", "website"}
	e.publish()
	p := e.serve()
	// Two run what is declared, the others were never heard of.
	for _, host := range []string{"a2", "c1"} {
		p.checkin(p.agent(host), e.state(host, closureOf(host, 1)), 0)
	}
	operator := p.operator()
	ask := func(q client.HostsQuery) *protocol.HostsResponse {
		t.Helper()
		page, err := operator.HostsPage(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	for _, c := range []struct {
		query client.HostsQuery
		hosts string
	}{
		{client.HostsQuery{}, "a1 a2 b1 b2 c1"},
		{client.HostsQuery{Host: "a?"}, "a1 a2"},
		{client.HostsQuery{Channel: "sta*"}, "a1 a2 b1 b2 c1"},
		{client.HostsQuery{Channel: "edge"}, ""},
		{client.HostsQuery{Tag: "web*"}, "b1 b2"},
		{client.HostsQuery{Tag: "web"}, "b1"},
		{client.HostsQuery{State: "silent"}, "a1 b1 b2"},
		{client.HostsQuery{State: "conv*", Host: "c*"}, "c1"},
		{client.HostsQuery{WorstFirst: true}, "a1 b1 b2 a2 c1"},
	} {
		page := ask(c.query)
		if names(page) != c.hosts || page.Counts == nil || page.Counts.Hosts != len(page.Hosts) || page.Next != "" {
			t.Errorf("%+v: %q %+v next %q, want %q", c.query, names(page), page.Counts, page.Next, c.hosts)
		}
	}
	for _, worst := range []bool{false, true} {
		seen, pages := "", 0
		for q := (client.HostsQuery{WorstFirst: worst, Limit: 2}); ; pages++ {
			page := ask(q)
			if fmt.Sprint(*page.Counts) != "{5 0 3 0 0 2}" {
				t.Errorf("counts of page %d: %+v", pages, *page.Counts)
			}
			seen += names(page) + " "
			if q.After = page.Next; q.After == "" {
				break
			}
		}
		if want := map[bool]string{false: "a1 a2 b1 b2 c1 ", true: "a1 b1 b2 a2 c1 "}[worst]; seen != want || pages != 2 {
			t.Errorf("worst first %v: %q in %d pages, want %q", worst, seen, pages+1, want)
		}
	}
	// As v1 asks, it is v1's answer.
	plain, err := operator.Hosts(context.Background())
	if err != nil || names(plain) != "a1 a2 b1 b2 c1" || plain.Counts != nil {
		t.Errorf("without a query: %+v %v", plain, err)
	}
	for _, bad := range []string{"limit=0", "limit=x", "order=best", "host=%5Ba"} {
		got := p.send(p.web(e.operatorCert("jo")), sent{method: "GET", path: "/v1/hosts?" + bad})
		if got.status != 400 {
			t.Errorf("%s: %d, want 400", bad, got.status)
		}
	}
}
