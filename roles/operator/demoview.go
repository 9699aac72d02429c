package operator

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"

	"nixfleet/roles/protocol"
)

// demoView tells the story: on a terminal with a live table of the fleet below
// it, elsewhere in plain lines, one a change.
type demoView struct {
	w    io.Writer
	live func() (columns, lines int) // the size of the terminal; nil where there is none
	p    palette

	mu     sync.Mutex
	below  int // lines of the table that stand on the screen
	last   map[string]string
	recent []protocol.HostEntry
}

func newDemoView(w io.Writer) *demoView {
	v := &demoView{w: w, last: map[string]string{}}
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" {
		return v
	}
	v.p = palette(os.Getenv("NO_COLOR") == "")
	v.live = func() (int, int) {
		columns, lines, err := term.GetSize(int(file.Fd()))
		if err != nil || columns < 20 || lines < 10 {
			return 80, 24
		}
		return columns, lines
	}
	return v
}

// say prints one line of the story.
func (v *demoView) say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	text := fmt.Sprintf(format, args...)
	if v.live != nil {
		columns, _ := v.live()
		text = wrap(text, columns-4)
	}
	fmt.Fprintf(v.w, "  %s\n", text)
	v.draw()
}

// wrap breaks text at spaces into lines of at most width, which begin as the story
// does. A line that begins with a space is a command to copy.
func wrap(text string, width int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line[0] == ' ' {
			b.WriteString(line)
			continue
		}
		n := 0
		for i, word := range strings.SplitAfter(line, " ") {
			size := utf8.RuneCountInString(strings.TrimRight(word, " \n"))
			if i > 0 && n+size > width {
				b.WriteString("\n  ")
				n = 0
			}
			b.WriteString(word)
			n += utf8.RuneCountInString(word)
		}
	}
	return b.String()
}

func (v *demoView) title(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	fmt.Fprintf(v.w, "\n%s\n", v.p.paint(bold, text))
	v.draw()
}

// show takes a new view of the fleet.
func (v *demoView) show(hosts []protocol.HostEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.recent = hosts
	if v.live != nil {
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
	if v.live != nil {
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
	if v.live == nil || len(v.recent) == 0 {
		return
	}
	columns, lines := v.live()
	hosts, rest := v.fitting(lines - 5)
	rows := [][]string{{"HOST", "CHANNEL", "RUNS", "SHOULD RUN", "STATE"}}
	for _, h := range hosts {
		rows = append(rows, []string{h.Hostname, h.Channel, releaseOf(h.CurrentClosureHash), releaseOf(h.DeclaredClosureHash), v.p.paint(colourOf(h), word(h))})
	}
	var table strings.Builder
	// The table is made for this writer; printing to memory does not fail.
	_ = printTable(&table, rows)
	if rest != "" {
		table.WriteString(rest + "\n")
	}
	text := "\n"
	v.below = 1
	for line := range strings.Lines(table.String()) {
		text += "    " + line
		// A line that is too wide for the terminal takes more than one.
		v.below += 1 + max(0, 4+visible(strings.TrimRight(line, "\n"))-1)/columns
	}
	fmt.Fprint(v.w, text)
}

// fitting are the hosts that a terminal of so many lines has room for, those that
// are under way before those that have arrived, and a line about the others.
func (v *demoView) fitting(room int) (hosts []protocol.HostEntry, rest string) {
	if len(v.recent) <= room {
		return v.recent, ""
	}
	hosts = slices.Clone(v.recent)
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
	if word(h) == asDeclared {
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

const asDeclared = "as declared"

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
		return asDeclared
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

func colourOf(h protocol.HostEntry) string {
	text := word(h)
	switch {
	case text == asDeclared:
		return green
	case h.QuarantinedClosure != nil || text == "failed" || text == "reverted":
		return red
	case text == "not heard of":
		return dim
	}
	return yellow
}
