package release

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"time"

	"nixfleet/pki"
)

// lineWriter passes whole lines on, each with a prefix, so that what parallel builds say does not mix; as JSON, each
// as an object.
type lineWriter struct {
	w      io.Writer
	prefix string
	json   bool
	mu     sync.Mutex
	rest   []byte
}

func newLineWriter(w io.Writer, json bool, prefix string) *lineWriter {
	return &lineWriter{w: w, prefix: prefix, json: json}
}

// format is a whole line, with its end, as it is passed on.
func (l *lineWriter) format(line []byte) []byte {
	text := append([]byte(l.prefix), line...)
	if !l.json {
		return text
	}
	level, message := "info", strings.ToValidUTF8(strings.TrimSpace(string(text)), "?")
	if rest, ok := strings.CutPrefix(message, "warning: "); ok {
		level, message = "warn", rest
	}
	at := pki.At(time.Now().Truncate(time.Second)).String()
	doc, err := pki.Marshal(map[string]string{"level": level, "time": at, "message": message})
	if err != nil {
		return text
	}
	return append(doc, '\n')
}

// end passes on a last line that has no end of its own.
func (l *lineWriter) end() {
	l.mu.Lock()
	unfinished := len(l.rest) > 0
	l.mu.Unlock()
	if unfinished {
		l.Write([]byte{'\n'})
	}
}

// Write takes any part of a text.
func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if _, err := l.w.Write(l.format(l.rest[:i+1])); err != nil {
			return 0, err
		}
		l.rest = l.rest[i+1:]
	}
}
