package release

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/command"
)

// waitingEvery is how often a release says what it is waiting for.
const waitingEvery = 30 * time.Second

// A narrator tells what a release does.
type narrator struct {
	lines *lineWriter
	mu    sync.Mutex
	heard map[string]bool // lines of warnings that Nix has printed
}

func newNarrator(w io.Writer, json bool) *narrator {
	return &narrator{lines: newLineWriter(w, json, ""), heard: map[string]bool{}}
}

func (n *narrator) say(format string, args ...any) { fmt.Fprintf(n.lines, format+"\n", args...) }

// nix is the Nix of this machine, whose words become progress; hears gets them as well.
func (r *releaser) nix(hears ...func(line string)) nixops.CI {
	n := r.cfg.Nix
	news := r.listener()
	return nixops.CI{
		Nix: n.BinDir, NixConfDir: n.ConfDir, Store: n.Store, Roots: r.roots,
		Progress: func(line string) {
			for _, hear := range hears {
				hear(line)
			}
			if news(line) {
				r.say("nix: %s", line)
			}
		},
	}
}

// waiting says every half minute for how long something has been under way and, with detail, what it does. The
// returned function ends that.
func (n *narrator) waiting(what string, detail func() string) (stop func()) {
	done := make(chan struct{})
	started := time.Now()
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(waitingEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				text := ""
				if detail != nil {
					text = detail()
				}
				n.say("%s for %s%s", what, now.Sub(started).Round(time.Second), text)
			}
		}
	})
	return func() {
		close(done)
		group.Wait()
	}
}

// listener returns a function for the lines of one Nix, which says whether a line is to be passed on: it is not when
// it belongs to a warning and was passed on before. Nix prints the warnings of a flake anew for each host that it
// builds from it.
func (n *narrator) listener() func(line string) bool {
	warning := false
	return func(line string) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		// The further lines of a warning are indented.
		warning = strings.HasPrefix(line, "warning: ") || strings.HasPrefix(line, "evaluation warning: ") ||
			strings.HasPrefix(line, "trace: ") || warning && strings.HasPrefix(line, " ")
		if !warning {
			return true
		}
		known := n.heard[line]
		n.heard[line] = true
		return !known
	}
}

// buildProgress is how far Nix is with one host, as its own lines tell.
type buildProgress struct {
	mu             sync.Mutex
	wanted, begun  int // derivations
	fetched        int // paths
	building, copy string
}

// heard takes a line of Nix.
func (p *buildProgress) heard(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if count, ok := between(line, "these ", " derivations will be built:"); ok {
		p.wanted, _ = strconv.Atoi(count)
	} else if drv, ok := between(line, "building '", ".drv'"); ok {
		p.begun++
		p.building, p.copy = nameOf(drv), ""
	} else if path, ok := between(line, "copying path '", "' from "); ok {
		p.fetched++
		p.copy = nameOf(path)
	}
}

// between is the text after before, which begins the line, and until after.
func between(line, before, after string) (string, bool) {
	rest, ok := strings.CutPrefix(line, before)
	if !ok {
		return "", false
	}
	text, _, ok := strings.Cut(rest, after)
	return text, ok
}

// nameOf is the name in a store path, without the hash.
func nameOf(path string) string {
	_, name, _ := strings.Cut(filepath.Base(path), "-")
	return name
}

// String is what is under way: it follows the words "building HOST for TIME".
func (p *buildProgress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.copy != "":
		return fmt.Sprintf(": fetching %s (%s so far)", p.copy, command.Plural(p.fetched, "path"))
	case p.building == "":
		return ": evaluating"
	case p.wanted > 1:
		return fmt.Sprintf(": %s (%d of %d derivations)", p.building, p.begun, p.wanted)
	}
	return ": " + p.building
}
