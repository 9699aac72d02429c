package manual

import (
	"fmt"
	"regexp"
	"strings"
)

// span is what Markdown sets apart in a line: code, strong words, and links.
var span = regexp.MustCompile("`([^`]+)`|\\*\\*([^*]+)\\*\\*|\\[([^\\]]+)\\]\\(([^)]+)\\)")

// item is the beginning of a line of a list.
var item = regexp.MustCompile(`^(-|[0-9]+\.) (.*)$`)

// spelled are characters that roff would change or act upon.
var spelled = strings.NewReplacer(`\`, `\(rs`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// escaped is text as roff shows it. Nothing in it is a request.
func escaped(s string) string {
	lines := strings.Split(spelled.Replace(s), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// inline is a paragraph of Markdown in roff. A link to another page is its words alone.
func inline(s string) string {
	var b strings.Builder
	for {
		at := span.FindStringSubmatchIndex(s)
		if at == nil {
			b.WriteString(escaped(s))
			break
		}
		b.WriteString(escaped(s[:at[0]]))
		part := func(n int) string {
			if at[2*n] < 0 {
				return ""
			}
			return s[at[2*n]:at[2*n+1]]
		}
		switch code, strong, link, target := part(1), part(2), part(3), part(4); {
		case code != "":
			b.WriteString(`\fB` + escaped(code) + `\fR`)
		case strong != "":
			b.WriteString(`\fB` + escaped(strong) + `\fR`)
		default:
			b.WriteString(inline(link))
			if strings.Contains(target, "://") {
				b.WriteString(escaped(" (" + target + ")"))
			}
		}
		s = s[at[1]:]
	}
	text := b.String()
	if strings.HasPrefix(text, ".") {
		return `\&` + text
	}
	return text
}

// block is text that is shown as it stands, such as a command to copy.
func block(lines []string) string {
	return ".PP\n.RS 4\n.nf\n" + escaped(strings.TrimRight(strings.Join(lines, "\n"), "\n")) + "\n.fi\n.RE\n"
}

// page reads Markdown line by line.
type page struct {
	out   strings.Builder
	words []string // of the paragraph or item that is not written yet
	begin string   // the request before them
	code  []string
	head  []string // the head of the table
}

// body is Markdown in roff, without the heading of the whole.
func body(markdown string) string {
	var p page
	fenced := false
	for line := range strings.SplitSeq(markdown, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			p.flush()
			fenced = !fenced
		case fenced:
			p.code = append(p.code, line)
		default:
			p.line(line)
		}
	}
	p.flush()
	return p.out.String()
}

// line takes one line that is outside of a fence.
func (p *page) line(line string) {
	text := strings.TrimSpace(line)
	indented := strings.HasPrefix(line, "    ")
	row := strings.HasPrefix(line, "|")
	if !row {
		p.head = nil
	}
	marked := item.FindStringSubmatch(line)
	switch {
	case text == "" && len(p.code) > 0:
		p.code = append(p.code, "")
	case text == "":
		p.flush()
	case indented && len(p.words) == 0:
		p.code = append(p.code, line[4:])
	case strings.HasPrefix(line, "# "):
		p.flush()
	case strings.HasPrefix(line, "## "):
		p.flush()
		p.out.WriteString(".SH " + quotedTitle(strings.ToUpper(line[3:])) + "\n")
	case strings.HasPrefix(line, "### "):
		p.flush()
		p.out.WriteString(".SS " + quotedTitle(line[4:]) + "\n")
	case row:
		p.flush()
		p.row(cells(line))
	case marked != nil:
		p.flush()
		p.begin = ".IP " + strings.Replace(marked[1], "-", `\(bu`, 1) + " 4\n"
		p.words = []string{marked[2]}
	default:
		if len(p.code) > 0 {
			p.flush()
		}
		p.words = append(p.words, text)
	}
}

// flush writes the paragraph, item or block that is open.
func (p *page) flush() {
	if len(p.words) > 0 {
		begin := p.begin
		if begin == "" {
			begin = ".PP\n"
		}
		p.out.WriteString(begin + inline(strings.Join(p.words, "\n")) + "\n")
	}
	if len(p.code) > 0 {
		p.out.WriteString(block(p.code))
	}
	p.words, p.code, p.begin = nil, nil, ""
}

// row writes a row of a table as a term and what the other columns say of it. Where there are more than two columns,
// each is named.
func (p *page) row(row []string) {
	if p.head == nil {
		p.head = row
		return
	}
	if strings.Trim(strings.Join(row, ""), "-: ") == "" {
		return
	}
	p.out.WriteString(".TP\n" + inline(row[0]) + "\n")
	for i, cell := range row[1:] {
		name := ""
		if len(row) > 2 && i+1 < len(p.head) {
			name = `\fI` + escaped(p.head[i+1]) + `:\fR `
		}
		if i > 0 {
			p.out.WriteString(".br\n")
		}
		p.out.WriteString(name + inline(cell) + "\n")
	}
}

// cells are the columns of a line of a table, in which \| is a bar.
func cells(line string) []string {
	const bar = "\x00"
	line = strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), "|"), `\|`, bar)
	list := strings.Split(line, "|")
	for i, cell := range list {
		list[i] = strings.ReplaceAll(strings.TrimSpace(cell), bar, "|")
	}
	return list
}

// quotedTitle is a heading as the argument of a request.
func quotedTitle(s string) string {
	return `"` + strings.ReplaceAll(escaped(strings.ReplaceAll(s, "`", "")), `"`, `\(dq`) + `"`
}

// header begins a page and names it.
func header(name string, section int, version, what string) string {
	return fmt.Sprintf(".TH %s %d \"\" %s nixfleet\n.SH NAME\n%s \\- %s\n",
		quotedTitle(strings.ToUpper(name)), section, quotedTitle("nixfleet "+version), escaped(name), inline(what))
}
