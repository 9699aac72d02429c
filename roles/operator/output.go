package operator

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
)

func jsonFlag() *cli.BoolFlag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON for programs"}
}

// printDoc prints a value as one indented JSON document.
func printDoc(c *cli.Context, v any) error {
	doc, err := pki.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return printText(c, doc)
}

// printText prints a document as it came, indented.
func printText(c *cli.Context, text jsontext.Value) error {
	if err := text.Indent(jsontext.WithIndent("  "), jsontext.AllowDuplicateNames(true)); err != nil {
		return fmt.Errorf("indent answer: %w", err)
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s\n", text)
	return err
}

// printTable aligns columns by their visible width. Cells may carry colours;
// control characters in them were sent by others and are made harmless.
func printTable(w io.Writer, rows [][]string) error {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], visible(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-visible(cell)+2))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// visible is the width of a cell without its colour codes.
func visible(cell string) int {
	n := utf8.RuneCountInString(cell)
	for rest := cell; ; {
		start := strings.Index(rest, "\x1b[")
		if start < 0 {
			return n
		}
		end := strings.IndexByte(rest[start:], 'm')
		if end < 0 {
			return n
		}
		n -= end + 1
		rest = rest[start+end+1:]
	}
}

// plain makes text that came over the network safe for a terminal: nothing in it
// moves the cursor, and nothing turns the direction of what is read.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// or is s, or a dash where a table has nothing to say.
func or(s *string) string {
	if s == nil || *s == "" {
		return "-"
	}
	return plain(*s)
}

// plural counts things.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
