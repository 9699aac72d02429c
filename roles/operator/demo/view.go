package demo

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// view tells the story: on a terminal with a live table of the fleet below
// it, elsewhere in plain lines, one a change.
type view struct {
	*command.View
	last map[string]string // line of each host, where there is no table
}

func newView(w io.Writer) *view {
	return &view{View: command.NewView(w), last: map[string]string{}}
}

// show takes a new view of the fleet.
func (v *view) show(hosts []protocol.HostEntry) {
	if v.Live() {
		v.Show(func(room int) ([][]string, string) { return v.table(hosts, room) })
		return
	}
	for _, h := range hosts {
		line := fmt.Sprintf("%s runs %s, %s", h.Hostname, releaseOf(h.CurrentClosureHash), h.Says())
		if v.last[h.Hostname] != line {
			v.last[h.Hostname] = line
			v.Detail(line)
		}
	}
}

// table is the fleet in a table with room for so many hosts.
func (v *view) table(all []protocol.HostEntry, room int) (rows [][]string, rest string) {
	if len(all) == 0 {
		return nil, ""
	}
	hosts, rest := fitting(all, room)
	rows = [][]string{{"HOST", "CHANNEL", "RUNS", "SHOULD RUN", "STATE"}}
	for _, h := range hosts {
		runs, should := releaseOf(h.CurrentClosureHash), releaseOf(h.DeclaredClosureHash)
		rows = append(rows, []string{h.Hostname, h.Channel, runs, should, v.Paint(colourOf(h), h.Says())})
	}
	return rows, rest
}

// fitting are the hosts that a table with room for so many shows, those that are
// under way before those that have arrived, and a line about the others.
func fitting(all []protocol.HostEntry, room int) (hosts []protocol.HostEntry, rest string) {
	if len(all) <= room {
		return all, ""
	}
	hosts = slices.Clone(all)
	slices.SortStableFunc(hosts, func(a, b protocol.HostEntry) int {
		return cmp.Compare(arrived(a), arrived(b))
	})
	hosts, left := hosts[:room-1], hosts[room-1:]
	there := 0
	for _, h := range left {
		there += arrived(h)
	}
	return hosts, fmt.Sprintf("… and %d more, %d of them as declared", len(left), there)
}

func arrived(h protocol.HostEntry) int {
	if h.Says() == protocol.AsDeclared {
		return 1
	}
	return 0
}

// releaseOf is the short name of a closure of the demonstration.
func releaseOf(closure *string) string {
	if closure == nil {
		return "-"
	}
	return "release " + (*closure)[strings.LastIndexByte(*closure, '-')+1:]
}

func colourOf(h protocol.HostEntry) command.Colour {
	switch {
	case h.Says() == protocol.AsDeclared:
		return command.Green
	case h.Stands() == protocol.StandsFailed, h.Revoked():
		return command.Red
	case h.Stands() == protocol.StandsSilent:
		return command.Dim
	}
	return command.Yellow
}
