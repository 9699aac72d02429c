package operator

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"nixfleet/roles/protocol"
)

// demoView tells the story: on a terminal with a live table of the fleet below
// it, elsewhere in plain lines, one a change.
type demoView struct {
	w    io.Writer
	live bool

	mu     sync.Mutex
	below  int // lines of the table that stand on the screen
	last   map[string]string
	recent []protocol.HostEntry
}

func newDemoView(w io.Writer, live bool) *demoView {
	return &demoView{w: w, live: live, last: map[string]string{}}
}

// say prints one line of the story.
func (v *demoView) say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	fmt.Fprintf(v.w, "  "+format+"\n", args...)
	v.draw()
}

func (v *demoView) title(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	if v.live {
		fmt.Fprintf(v.w, "\n\x1b[1m%s\x1b[0m\n", text)
	} else {
		fmt.Fprintf(v.w, "\n%s\n", text)
	}
	v.draw()
}

// show takes a new view of the fleet.
func (v *demoView) show(hosts []protocol.HostEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.recent = hosts
	if v.live {
		v.clear()
		v.draw()
		return
	}
	for _, h := range hosts {
		line := fmt.Sprintf("%s runs %s, %s", h.Hostname, releaseOf(h.CurrentClosureHash), word(h))
		if v.last[h.Hostname] != line {
			v.last[h.Hostname] = line
			fmt.Fprintf(v.w, "    %s\n", line)
		}
	}
}

// end leaves the table where it stands.
func (v *demoView) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.below = 0
	v.recent = nil
	if v.live {
		fmt.Fprintln(v.w)
	}
}

func (v *demoView) clear() {
	if v.below > 0 {
		fmt.Fprintf(v.w, "\x1b[%dA\x1b[J", v.below)
		v.below = 0
	}
}

func (v *demoView) draw() {
	if !v.live || len(v.recent) == 0 {
		return
	}
	var b strings.Builder
	rows := [][]string{{"HOST", "CHANNEL", "RUNS", "SHOULD RUN", "STATE"}}
	for _, h := range v.recent {
		rows = append(rows, []string{h.Hostname, h.Channel, releaseOf(h.CurrentClosureHash), releaseOf(h.DeclaredClosureHash), colored(h)})
	}
	// The table is made for this writer; printing to memory does not fail.
	_ = printTable(&b, rows)
	text := "\n" + strings.ReplaceAll(b.String(), "\n", "\n    ")
	text = strings.TrimRight(text, " ")
	fmt.Fprint(v.w, strings.Replace(text, "\n", "\n    ", 1))
	v.below = strings.Count(text, "\n")
}

// releaseOf is the short name of a closure of the demonstration.
func releaseOf(closure *string) string {
	if closure == nil {
		return "-"
	}
	return "release " + (*closure)[strings.LastIndexByte(*closure, '-')+1:]
}

// word is the state of a host in a word or two.
func word(h protocol.HostEntry) string {
	state := h.Word()
	switch {
	case h.Online != nil && !*h.Online:
		return "not heard of"
	case h.Converged && state == "Healthy":
		return "soaking"
	case h.Converged && (state == "Dispatched" || state == "Activating" || state == "ConfirmWindow"):
		return "confirming"
	case h.Converged:
		return "as declared"
	case h.QuarantinedClosure != nil:
		return "waits: its new closure failed"
	case state != "" && state != "Queued":
		return strings.ToLower(state)
	case h.Reason != nil && waitsFor[h.Reason.Code] != "":
		return waitsFor[h.Reason.Code]
	case h.Reason != nil:
		return "waits: " + h.Reason.Code
	}
	return "waits"
}

// waitsFor are the reasons of this story in two or three words.
var waitsFor = map[string]string{
	"wave": "waits for its wave", "halted": "waits: rollout halted", "offered": "is told next", "resent": "is told next", "offline": "not heard of",
}

func colored(h protocol.HostEntry) string {
	text := word(h)
	switch {
	case text == "as declared":
		return "\x1b[32m" + text + "\x1b[0m"
	case h.QuarantinedClosure != nil || text == "failed" || text == "reverted":
		return "\x1b[31m" + text + "\x1b[0m"
	case text == "not heard of":
		return "\x1b[2m" + text + "\x1b[0m"
	}
	return "\x1b[33m" + text + "\x1b[0m"
}
