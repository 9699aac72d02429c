package page

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet/roles/protocol"
)

// Width and height of a chart in its own units.
const (
	chartWidth  = 640.0
	chartHeight = 120.0
)

// chart is how many hosts were given their target and how many have confirmed it, over time.
type chart struct {
	Given, Confirmed, Back string // points of lines
	Most                   int
	From, To               time.Time
	Label                  string
}

// draw makes a chart of the dispatches of a rollout; nil without any.
func draw(events []protocol.TraceEvent, from, to time.Time, hosts int) *chart {
	if len(events) == 0 {
		return nil
	}
	var given, confirmed, back []time.Time
	last := from
	for i := range events {
		e := &events[i]
		given = append(given, e.DispatchedAt.Time)
		if e.DispatchedAt.After(last) {
			last = e.DispatchedAt.Time
		}
		if e.TerminalAt == nil || e.TerminalState == nil {
			last = to // it goes on
			continue
		}
		if e.TerminalAt.After(last) {
			last = e.TerminalAt.Time
		}
		switch *e.TerminalState {
		case "converged", "converged-at-dispatch":
			confirmed = append(confirmed, e.TerminalAt.Time)
		case "rolled-back":
			back = append(back, e.TerminalAt.Time)
		}
	}
	c := &chart{Most: max(hosts, len(given)), From: from, To: last}
	c.Given, c.Confirmed, c.Back = c.steps(given), c.steps(confirmed), c.steps(back)
	c.Label = fmt.Sprintf("%d of %d given the release, %d confirmed, %d returned", len(given), c.Most, len(confirmed),
		len(back))
	return c
}

// steps are the points of a line that grows by one at each time.
func (c *chart) steps(at []time.Time) string {
	if len(at) == 0 {
		return ""
	}
	slices.SortFunc(at, time.Time.Compare)
	span := max(c.To.Sub(c.From), time.Second)
	var points strings.Builder
	y := func(n int) float64 { return chartHeight - chartHeight*float64(n)/float64(max(c.Most, 1)) }
	fmt.Fprintf(&points, "0,%.1f", y(0))
	drawn := -1.0
	for n, t := range at {
		x := min(max(chartWidth*float64(t.Sub(c.From))/float64(span), 0), chartWidth)
		// Steps closer than half a unit are one: a rollout of 10,000 hosts is no longer a line.
		if x-drawn < 0.5 && n < len(at)-1 {
			continue
		}
		fmt.Fprintf(&points, " %.1f,%.1f %.1f,%.1f", x, y(n), x, y(n+1))
		drawn = x
	}
	fmt.Fprintf(&points, " %.1f,%.1f", chartWidth, y(len(at)))
	return points.String()
}
