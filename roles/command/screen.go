package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Picture makes what a screen of so many lines shows. It may be longer and wider than that: the screen cuts it.
type Picture func(ctx context.Context, lines int) (string, error)

// ErrNoScreen means that a picture has no terminal to be drawn on.
var ErrNoScreen = errors.New("the output is not a terminal")

// Screen draws a picture again and again on a whole terminal, at once when it is resized, until somebody presses q or
// ctx ends. A picture that fails is shown as its error, and the next one is tried: a control plane that restarts is not
// a reason to look away.
func Screen(ctx context.Context, out io.Writer, every time.Duration, draw Picture) error {
	file, ok := out.(*os.File)
	if !ok || !isTerminal(out) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return ErrNoScreen
	}
	before, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	defer func() { _ = term.Restore(int(os.Stdin.Fd()), before) }()
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	go pressed(os.Stdin, quit)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	// The other screen, without a cursor: what stood on the terminal is there again afterwards.
	fmt.Fprint(file, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(file, "\x1b[?25h\x1b[?1049l")
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		columns, lines, err := term.GetSize(int(file.Fd()))
		if err != nil {
			columns, lines = 80, 24
		}
		text, err := draw(ctx, lines)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			text = PlainLines(err.Error()) + "\n"
		}
		fmt.Fprint(file, frame(text, columns, lines))
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
		case <-ticker.C:
		}
	}
}

// pressed ends a screen at q, Ctrl-C or the end of the input: a terminal that reads keys one by one sends no signal.
func pressed(in io.Reader, quit func()) {
	key := make([]byte, 1)
	for {
		n, err := in.Read(key)
		if err != nil || n == 1 && (key[0] == 'q' || key[0] == 'Q' || key[0] == 3) {
			quit()
			return
		}
	}
}

// frame is what draws text over the frame before without a flicker: each line is written in its place and cleared
// behind, and nothing is cleared in front.
func frame(text string, columns, lines int) string {
	var b strings.Builder
	b.WriteString("\x1b[H")
	rows := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, row := range rows[:min(len(rows), lines)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cut(row, columns) + "\x1b[K")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// cut is the beginning of a line that a terminal has room for. Colours take none, and end.
func cut(line string, columns int) string {
	if visible(line) <= columns {
		return line
	}
	var b strings.Builder
	width := 0
	for rest := line; rest != ""; {
		if code, after, found := colourAt(rest); found {
			b.WriteString(code)
			rest = after
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		if width == columns-1 {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
		width++
		rest = rest[size:]
	}
	return b.String() + escape + "0m"
}

// colourAt takes a colour of a Palette from the beginning of a text.
func colourAt(text string) (code, after string, found bool) {
	rest, found := strings.CutPrefix(text, escape)
	if !found {
		return "", text, false
	}
	number, after, found := strings.Cut(rest, "m")
	if !found || !isColour(number) {
		return "", text, false
	}
	return escape + number + "m", after, true
}
