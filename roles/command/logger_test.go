package command

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"
)

// A pipe that nobody reads is full after some lines; the writer goes on, and
// says what is missing once somebody reads again.
func TestALogThatNobodyReadsHoldsNothingUp(t *testing.T) {
	for _, format := range []string{LogJSON, LogPretty} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		log, err := Logger(w, zerolog.InfoLevel, format)
		if err != nil {
			t.Fatal(err)
		}
		const lines = 2000 // 100 bytes each, a pipe holds 64 KiB
		for i := range lines {
			log.Info().Int("line", i).Str("text", strings.Repeat("x", 60)).Msg("said")
		}
		log.Info().Str("text", strings.Repeat("long ", 20000)).Msg("said")
		read := make(chan []string)
		go func() {
			var got []string
			for scanner := bufio.NewScanner(r); scanner.Scan(); {
				got = append(got, scanner.Text())
				if strings.Contains(scanner.Text(), "read again") {
					break
				}
			}
			read <- got
		}()
		// The reader makes room at some time; until then lines are lost.
		var got []string
		for said := false; !said; {
			log.Info().Msg("read again")
			select {
			case got = <-read:
				said = true
			default:
			}
		}
		w.Close()
		text := strings.Join(got, "\n")
		if strings.Count(text, "said") >= lines || !strings.Contains(text, "log lines lost: stdout was not read") {
			t.Errorf("%s: %d lines were read: %.2000s", format, len(got), text)
		}
		for _, line := range got {
			if format == LogJSON && json.Unmarshal([]byte(line), new(map[string]any)) != nil {
				t.Errorf("a line of %d bytes is not JSON: %.100s", len(line), line)
			}
		}
	}
}

// A thread that was not scheduled for a while finds its time over; poll must not take
// that for a wait without end.
func TestATimeThatIsOverIsNotWaitedFor(t *testing.T) {
	for d, want := range map[time.Duration]int{-time.Hour: 0, -time.Nanosecond: 0, 0: 0, time.Millisecond: 1,
		patience: 100} {
		if got := pollTimeout(d); got != want {
			t.Errorf("%s: %d ms, want %d", d, got, want)
		}
	}
}

// A reader that goes away, as when the journal restarts, does not end the process.
func TestALogWhoseReaderHasGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	log, err := Logger(w, zerolog.InfoLevel, LogJSON)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	s := &steadyWriter{file: w}
	if s.writable() {
		t.Error("a pipe without a reader counts as writable")
	}
	log.Info().Msg("nobody hears this")
}

func TestALogShowsNoControlCharacters(t *testing.T) {
	const hostile = "a\x1b[2Jb\u009bc\u202ed\x7fe\xfff\U000e0001"
	for _, format := range []string{LogJSON, LogPretty} {
		var out bytes.Buffer
		log, err := Logger(&out, zerolog.InfoLevel, format)
		if err != nil {
			t.Fatal(err)
		}
		log.Info().Str(hostile, hostile).Msg(hostile)
		for _, r := range strings.TrimSuffix(out.String(), "\n") {
			if unsafe(r) || r == '\t' {
				t.Errorf("%s: the log has %q: %q", format, r, out.String())
			}
		}
		if format == LogPretty {
			continue
		}
		var line map[string]string
		if err := json.Unmarshal(out.Bytes(), &line); err != nil ||
			!strings.HasPrefix(line["message"], "a\x1b[2Jb\u009bc\u202ed\x7fe") {
			t.Errorf("read back as %q: %v", line["message"], err)
		}
	}
	if _, err := Logger(io.Discard, zerolog.InfoLevel, "xml"); err == nil {
		t.Error("there is a format xml")
	}
}
