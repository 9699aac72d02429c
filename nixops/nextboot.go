package nixops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/loader"
)

// NextBoot is what the boot loader will start, as far as it can be known.
type NextBoot struct {
	Loader  string  // "systemd-boot", "GRUB", "extlinux", "launchd"; "" if it is not known
	Default string  // closure that starts by itself; "" if it is not known
	Unknown string  // why the default is not known
	Once    string  // closure that starts once instead; "" if there is none, or if it is not known
	Entry   string  // id of the default's entry, where the loader has ids
	Counter Counter // what the boot counter of that entry does
	// UsedUp are the closures of entries that the loader has no tries left for: their boots were never blessed.
	UsedUp []string
}

// Counter says what the boot counter of an entry does.
type Counter string

// The words for counters.
const (
	NotCounted Counter = ""
	// CounterProtects means that the loader goes on to another entry when the tries are used up.
	CounterProtects Counter = "protects"
	// CounterInVain means that it starts the same entry again and again, since its `default` names just that one.
	CounterInVain Counter = "in vain"
)

var counters = map[loader.Guard]Counter{loader.NotCounted: NotCounted, loader.CountedProtects: CounterProtects,
	loader.CountedInVain: CounterInVain}

// NextBoot reads what the boot loader will read, and asks bootctl where that is systemd's. Where the two do not agree,
// nothing is known.
func (m *machine) NextBoot(ctx context.Context) (NextBoot, error) {
	if m.platform == "darwin" {
		closure, err := m.Profile(ctx)
		return NextBoot{Loader: "launchd", Default: closure}, err
	}
	s := loader.Read(m.root)
	next := NextBoot{Loader: s.Loader, Default: s.Default.Closure, Unknown: s.Default.Unknown,
		Counter: counters[s.Default.Guard], UsedUp: s.UsedUp()}
	if s.OnceSet {
		next.Once = s.Once.Closure
	}
	if s.Default.Entry != nil {
		next.Entry = s.Default.Entry.ID()
	}
	list := command{path: m.bootctl, args: []string{"list", "--json=short", "--no-pager"}, timeout: opinionTimeout}
	if m.root != "" {
		list.env = []string{"NIXFLEET_ROOT=" + m.root}
	}
	if other := secondOpinion(ctx, list, s); other != "" {
		next.Unknown = fmt.Sprintf("by its files systemd-boot starts %s, but bootctl says %s", next.Entry, other)
		next.Default, next.Counter = "", NotCounted
	}
	return next, nil
}

// opinionTimeout bounds bootctl, which may have to wait for an ESP that is mounted on demand.
const opinionTimeout = 20 * time.Second

// secondOpinion returns the id of the entry that `bootctl list` takes for the default, if that is another than ours. It
// is "" where bootctl says nothing (252 does not, nor does one that fails), and where it is known to be wrong: it does
// not pass over a `preferred` entry without tries, and takes LoaderEntryDefault before `preferred`.
func secondOpinion(ctx context.Context, list command, s loader.State) string {
	if s.Menu == nil || s.OnceSet || s.Default.Entry == nil || s.Menu.Preferring != "" || s.Variables.Preferred != "" {
		return ""
	}
	out, err := list.run(ctx)
	if err != nil {
		return ""
	}
	var entries []struct {
		ID        string `json:"id"`
		IsDefault bool   `json:"isDefault"`
	}
	if json.Unmarshal(bytes.TrimSpace(out), &entries) != nil {
		return "" // 252 prints a line for each entry, without a default
	}
	for _, e := range entries {
		if e.IsDefault && !strings.EqualFold(e.ID, s.Default.Entry.ID()) && !strings.EqualFold(e.ID, s.Default.Entry.Name) {
			return e.ID
		}
	}
	return ""
}

// BootStamp asks no program and no partition that rests.
func (m *machine) BootStamp(context.Context) string { return loader.Stamp(m.root) }

// BootDefault reads the same files as the boot loader and asks no program.
func (m *machine) BootDefault(ctx context.Context) (string, error) {
	if m.platform == "darwin" {
		return m.Profile(ctx)
	}
	return loader.Read(m.root).Default.Closure, nil
}

// HasBootEntry looks for the closure in every file that a known loader reads.
func (m *machine) HasBootEntry(ctx context.Context, closure string) (bool, error) {
	if m.platform == "darwin" {
		return true, nil
	}
	has, err := loader.Read(m.root).Starts(closure)
	if err != nil {
		return false, fmt.Errorf("boot entry of %s: %w", closure, err)
	}
	return has, nil
}

// StartedBy reads the kernel's own command line. A container has that of the machine around it, which says nothing.
func (m *machine) StartedBy(ctx context.Context) (string, error) {
	if m.platform != "linux" {
		return "", nil
	}
	if _, err := disk.ReadLinked(m.root+"/run/systemd/container", maxFact); !errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	line, err := disk.ReadLinked(m.root+"/proc/cmdline", maxFact)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("kernel command line: %w", err)
	}
	return loader.Closure(string(line)), nil
}
