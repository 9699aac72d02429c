package command

import (
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// Palette colours text, or leaves it alone.
type Palette bool

// Colour is a colour or a weight of text on a terminal.
type Colour string

// The colours of a Palette.
const (
	Bold   Colour = "1"
	Dim    Colour = "2"
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
)

const escape = "\x1b["

func isColour(code string) bool {
	switch Colour(code) {
	case Bold, Dim, Red, Green, Yellow, "0":
		return true
	}
	return false
}

// Colours returns the palette for w: it colours on a terminal, unless NO_COLOR
// is set.
func Colours(w io.Writer) Palette {
	return Palette(os.Getenv("NO_COLOR") == "" && isTerminal(w))
}

// ColoursOf is Colours for the output of c, whose flag --no-color counts.
func ColoursOf(c *cli.Context) Palette { return Colours(c.App.Writer) && !Palette(c.Bool("no-color")) }

// NoColourFlag is --no-color.
func NoColourFlag() *cli.BoolFlag {
	return &cli.BoolFlag{
		Name: "no-color", EnvVars: []string{"NIXFLEET_NO_COLOR"},
		Usage: "no colours (also NO_COLOR, and when the output is not a terminal)",
	}
}

// Paint returns text in a colour.
func (p Palette) Paint(colour Colour, text string) string {
	if !p || text == "" {
		return text
	}
	return escape + string(colour) + "m" + text + escape + "0m"
}

// ToTerminal reports whether the output of c is a terminal.
func ToTerminal(c *cli.Context) bool { return isTerminal(c.App.Writer) }

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
