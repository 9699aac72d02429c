package command

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Table prints rows with their columns aligned by visible width. Cells may
// carry the colours of a Palette; whatever else in them is not printable is
// made plain, because cells often hold what other machines have sent.
func Table(w io.Writer, rows [][]string) error {
	var width []int
	lines := make([][]string, len(rows))
	for n, row := range rows {
		lines[n] = make([]string, len(row))
		for i, cell := range row {
			lines[n][i] = coloured(cell)
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], visible(lines[n][i]))
		}
	}
	var b strings.Builder
	for _, row := range lines {
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

// coloured is a cell made plain, with the colours of a Palette left in it.
func coloured(cell string) string {
	before, rest, found := strings.Cut(cell, escape)
	if !found {
		return Plain(cell)
	}
	var b strings.Builder
	b.WriteString(Plain(before))
	for found {
		var text string
		text, rest, found = strings.Cut(rest, escape)
		code, after, ended := strings.Cut(text, "m")
		if ended && isColour(code) {
			b.WriteString(escape + code + "m")
			text = after
		} else {
			text = " [" + text
		}
		b.WriteString(Plain(text))
	}
	return b.String()
}

// visible is the width of a cell without its colours.
func visible(cell string) int {
	n := utf8.RuneCountInString(cell)
	for rest := cell; ; {
		start := strings.Index(rest, escape)
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
