package command

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// pieceSize is what a pipe takes without blocking once it is writable, in bytes:
	// PIPE_BUF, the same on Linux and below that of macOS's buffers.
	pieceSize = 4096
	// patience is how long a line waits for a reader that keeps up otherwise.
	patience = 100 * time.Millisecond
)

// steadyWriter writes the lines of a log to a file, and never waits for a
// reader that has stopped reading: a full pipe must hold up neither the start
// nor a request. Lines that nobody takes are counted and dropped; when the
// reader is back, note says how many they were.
type steadyWriter struct {
	file *os.File
	note func(lost int) []byte

	mu    sync.Mutex
	stuck bool // the last try found no room
	cut   bool // the last line was written in part
	lost  int  // lines since the last note
}

// Write takes one line; it always succeeds.
func (s *steadyWriter) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.caughtUp() || !s.put(line) {
		s.lost++
	}
	return len(line), nil
}

// caughtUp ends a line that was cut and says what is missing, before anything else
// is written; false means that there is no room for it yet.
func (s *steadyWriter) caughtUp() bool {
	if s.cut {
		s.cut = !s.put([]byte("\n"))
	}
	if s.cut {
		return false
	}
	if s.lost > 0 && s.put(s.note(s.lost)) {
		s.lost = 0
	}
	return s.lost == 0
}

func (s *steadyWriter) put(line []byte) bool {
	for rest := line; len(rest) > 0; {
		piece := rest[:min(len(rest), pieceSize)]
		if !s.writable() {
			s.cut = s.cut || len(rest) < len(line)
			return false
		}
		n, err := s.file.Write(piece)
		if err != nil {
			s.cut = s.cut || len(rest)-n < len(line)
			return false
		}
		rest = rest[n:]
	}
	return true
}

// writable says whether a piece can be written without blocking.
func (s *steadyWriter) writable() bool {
	wait := patience
	if s.stuck {
		wait = 0
	}
	poll := []unix.PollFd{{Fd: int32(s.file.Fd()), Events: unix.POLLOUT}}
	until := time.Now().Add(wait)
	for {
		n, err := unix.Poll(poll, pollTimeout(time.Until(until)))
		if err == unix.EINTR && time.Now().Before(until) {
			continue
		}
		// A reader that has gone away would end the process by SIGPIPE.
		room := err == nil && n == 1 && poll[0].Revents&unix.POLLOUT != 0
		s.stuck = !room || poll[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		return !s.stuck
	}
}

// pollTimeout is a time in milliseconds. One that has passed is zero: poll waits
// without end when it is given a negative number.
func pollTimeout(d time.Duration) int { return int(max(0, d).Milliseconds()) }

// visibleWriter keeps characters that a terminal acts upon, or that turn the
// direction of reading, out of a log. In JSON they become escapes, so that
// nothing is lost.
type visibleWriter struct {
	io.Writer
	json bool
}

// Write takes whole lines.
func (v visibleWriter) Write(lines []byte) (int, error) {
	if !bytes.ContainsFunc(lines, unsafe) {
		return v.Writer.Write(lines)
	}
	out := make([]byte, 0, len(lines)+16)
	for _, r := range string(lines) {
		switch {
		case !unsafe(r):
			out = utf8.AppendRune(out, r)
		case v.json && r <= 0xffff:
			const hex = "0123456789abcdef"
			out = append(out, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			out = append(out, ' ')
		}
	}
	if _, err := v.Writer.Write(out); err != nil {
		return 0, err
	}
	return len(lines), nil
}

func unsafe(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }
