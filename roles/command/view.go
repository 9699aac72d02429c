package command

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// View tells a story line by line. On a terminal a live table stands below the
// lines and is drawn anew when it changes; elsewhere there is no table.
type View struct {
	Palette
	w    io.Writer
	size func() (columns, lines int) // of the terminal; nil where there is none

	mu    sync.Mutex
	below int // lines of the table that stand on the screen
	table Drawing
}

// Drawing makes the rows of a live table for a terminal that has room for so
// many of them, and a line that stands below it.
type Drawing func(room int) (rows [][]string, note string)

// NewView returns a view on w, which is live when w is a terminal.
func NewView(w io.Writer) *View {
	file, ok := w.(*os.File)
	if !ok || !isTerminal(w) || os.Getenv("TERM") == "dumb" {
		return &View{w: w}
	}
	return LiveView(w, func() (int, int) {
		columns, lines, err := term.GetSize(int(file.Fd()))
		if err != nil || columns < 20 || lines < 10 {
			return 80, 24
		}
		return columns, lines
	}, Colours(w))
}

// LiveView returns a view that is live on a terminal of the given size.
func LiveView(w io.Writer, size func() (columns, lines int), p Palette) *View {
	return &View{w: w, size: size, Palette: p}
}

// Live says whether the view has a table.
func (v *View) Live() bool { return v.size != nil }

// Below returns how many lines of the table stand on the screen.
func (v *View) Below() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.below
}

// Say prints one line of the story.
func (v *View) Say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if v.size != nil {
		columns, _ := v.size()
		text = Wrap(text, columns-4, "  ")
	}
	v.print("  " + text + "\n")
}

// Title prints a line that begins a part of the story.
func (v *View) Title(text string) { v.print("\n" + v.Paint(Bold, text) + "\n") }

// Detail prints a line that belongs to the one before it.
func (v *View) Detail(text string) { v.print("    " + text + "\n") }

func (v *View) print(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	fmt.Fprint(v.w, text)
	v.draw()
}

// Show draws a new table in the place of the last one.
func (v *View) Show(table Drawing) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	v.table = table
	v.draw()
}

// End leaves the table where it stands.
func (v *View) End() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.below, v.table = 0, nil
	if v.size != nil {
		fmt.Fprintln(v.w)
	}
}

func (v *View) clear() {
	if v.below > 0 {
		fmt.Fprintf(v.w, "\x1b[%dA\x1b[J", v.below)
		v.below = 0
	}
}

func (v *View) draw() {
	if v.size == nil || v.table == nil {
		return
	}
	columns, lines := v.size()
	rows, note := v.table(lines - 5)
	if len(rows) == 0 {
		return
	}
	var table strings.Builder
	// Printing to memory does not fail.
	_ = Table(&table, rows)
	if note != "" {
		table.WriteString(note + "\n")
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
