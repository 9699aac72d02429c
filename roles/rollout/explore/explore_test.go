package explore

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// states is how many different states are explored: NIXFLEET_EXPLORE_STATES, or some hundred thousand.
func states(t testing.TB) int {
	v := os.Getenv("NIXFLEET_EXPLORE_STATES")
	if v == "" {
		return 200_000
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFleets explores every fleet. NIXFLEET_EXPLORE_FLEET names the only one.
func TestFleets(t *testing.T) {
	share := shares(states(t))
	began := time.Now()
	var all atomic.Int64
	t.Cleanup(func() { t.Logf("%d different states in %s", all.Load(), time.Since(began).Round(time.Second)) })
	for _, s := range fleets {
		limit := share[s.name]
		switch only := os.Getenv("NIXFLEET_EXPLORE_FLEET"); only {
		case "":
		case s.name:
			limit = states(t)
		default:
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			x := newSearch(s, limit)
			f := x.run()
			all.Add(int64(len(x.by)))
			t.Log(x)
			if f != nil {
				moves := x.story(f)
				t.Errorf("%s\n\n%s\nas a regression test, testdata/NAME.txt:\n\n%s",
					f.what, tellStory(s, moves), writeStory(s, f.what, moves))
			}
		})
	}
}

// TestStories replays what was found once: each step has to be possible, and nothing may break.
func TestStories(t *testing.T) {
	eachStory(t, "testdata/*.txt", func(t *testing.T, s *spec, moves []move) {
		if at, broken := replay(t, s, moves); broken != "" {
			t.Fatalf("after step %d, %s: %s\n\n%s", at+1, moves[at], broken, tellStory(s, moves[:at+1]))
		}
	})
}

// TestOpenStories replays what was found and is not mended yet: each still breaks its invariant with its last step.
func TestOpenStories(t *testing.T) {
	eachStory(t, "testdata/open/*.txt", func(t *testing.T, s *spec, moves []move) {
		if at, broken := replay(t, s, moves); broken == "" {
			t.Errorf("this story breaks nothing any more: move it to testdata, and its row in docs/proof.md to what is mended")
		} else if at != len(moves)-1 {
			t.Errorf("it breaks something else already after step %d, %s: %s", at+1, moves[at], broken)
		}
	})
}

// eachStory reads the stories of a directory and runs a test of each.
func eachStory(t *testing.T, pattern string, test func(*testing.T, *spec, []move)) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no story of ", pattern)
	}
	for _, file := range files {
		t.Run(nameOf(file), func(t *testing.T) {
			s, moves := storyOf(t, file)
			test(t, s, moves)
		})
	}
}

// nameOf is the name of a story by its file.
func nameOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txt") }

// storyOf reads the story of a file.
func storyOf(t *testing.T, file string) (s *spec, moves []move) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s, moves, err = readStory(string(text)); err != nil {
		t.Fatal(err)
	}
	return s, moves
}

// replay plays a story of which each step has to be possible, and says what played says.
func replay(t *testing.T, s *spec, moves []move) (at int, broken string) {
	t.Helper()
	at, broken = played(s, moves)
	if broken == "" && at < len(moves) {
		t.Fatalf("step %d, %s, is not possible", at+1, moves[at])
	}
	return at, broken
}

// played makes the moves of a story until one breaks an invariant or is not possible, and says which move and what it
// broke.
func played(s *spec, moves []move) (at int, broken string) {
	x := newSearch(s, 0)
	n := x.start()
	for i, m := range moves {
		if !x.apply(n, m) {
			return i, ""
		}
		x.look(n)
		if x.broken != "" {
			return i, x.broken
		}
	}
	return len(moves), ""
}

// TestFrozenStatesAreTheSame goes through the moves of stories once in a world that is never frozen, and once in one
// that is frozen and thawed before each move.
func TestFrozenStatesAreTheSame(t *testing.T) {
	for _, s := range fleets {
		x := newSearch(s, 3000)
		x.run()
		for i := uint32(0); int(i) < len(x.by); i += 97 {
			live, thawed := x.start(), x.start()
			for _, m := range x.path(i) {
				x.apply(live, m)
				x.buf = x.freezer.freeze(x.buf[:0], thawed)
				thawed = x.freezer.thaw(x.buf)
				x.apply(thawed, m)
				if a, b := x.printer.print(live), x.printer.print(thawed); a != b {
					t.Fatalf("%s, state %d: they differ after %s of %v", s.name, i, m, x.path(i))
				}
			}
			if to, ok := x.prints.find(x.printer.print(live)); !ok || to != i {
				t.Fatalf("%s: the way to state %d leads to %d", s.name, i, to)
			}
		}
	}
}

// tellStory puts a story into words.
func tellStory(s *spec, moves []move) string {
	var b strings.Builder
	fmt.Fprintf(&b, "fleet %s: %s\n", s.name, s.about)
	r := newRunner(s)
	r.told = func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	n := r.start()
	for i, m := range moves {
		fmt.Fprintf(&b, "%2d. after %s: %s\n", i+1, time.Duration(n.Now-began)*time.Millisecond, m.words())
		if !r.apply(n, m) {
			fmt.Fprintf(&b, "    which is not possible\n")
			break
		}
	}
	if r.broken != "" {
		fmt.Fprintf(&b, "    BROKEN: %s\n", r.broken)
	}
	return b.String()
}

// writeStory gives the file that readStory reads.
func writeStory(s *spec, what string, moves []move) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\nfleet %s\n", what, s.name)
	for _, m := range moves {
		fmt.Fprintln(&b, m)
	}
	return b.String()
}

func readStory(text string) (s *spec, moves []move, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "fleet "); ok {
			for _, f := range fleets {
				if f.name == name {
					s = f
				}
			}
			if s == nil {
				return nil, nil, fmt.Errorf("no fleet is called %q", name)
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		m, err := parseMove(line)
		if err != nil {
			return nil, nil, err
		}
		moves = append(moves, m)
	}
	if s == nil {
		return nil, nil, fmt.Errorf("the story names no fleet")
	}
	return s, moves, nil
}
