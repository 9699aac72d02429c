package loader

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Entry is one line of systemd-boot's menu: a file in loader/entries or a unified kernel image in EFI/Linux.
type Entry struct {
	Name     string // of its file, with the boot counter
	Dir      string // directory of its partition, below the root that was read
	Path     string // of its file in the partition
	Closure  string // that its init= names; "" if it starts none
	SortKey  string
	Machine  string
	Version  string
	Counter  Counter
	Kernel   string   // file that the loader starts, as a path in the partition; "" for an image that contains it
	Initrds  []string // likewise
	Missing  []string // files among these that the partition does not have
	NoKernel bool     // the kernel is among the missing ones, which keeps the entry out of the menu
}

// Counter is a boot counter: the `+LEFT-DONE` of a file's name. An entry without one is not counted.
type Counter struct {
	Counted    bool
	Left, Done uint64
}

var counted = regexp.MustCompile(`\+(\d{1,9})(-(\d{1,9}))?(\.[A-Za-z]+)$`)

// counterOf reads the counter of a file's name and returns the name without it.
func counterOf(name string) (Counter, string) {
	m := counted.FindStringSubmatchIndex(name)
	if m == nil {
		return Counter{}, name
	}
	c := Counter{Counted: true}
	// The pattern bounds both numbers.
	c.Left, _ = strconv.ParseUint(name[m[2]:m[3]], 10, 64)
	if m[6] >= 0 {
		c.Done, _ = strconv.ParseUint(name[m[6]:m[7]], 10, 64)
	}
	return c, name[:m[0]] + name[m[8]:]
}

// ID is the entry's id without its boot counter.
func (e Entry) ID() string {
	_, id := counterOf(e.Name)
	return strings.ToLower(id)
}

// Pattern matches the entry whichever way the loader spells its id: systemd-boot of systemd 252 has the counter in
// it, those of 257 and 262 do not.
func (e Entry) Pattern() string {
	if !e.Counter.Counted {
		return e.ID()
	}
	id, suffix := e.ID(), path.Ext(e.Name)
	return strings.TrimSuffix(id, suffix) + "[+.]*" + strings.TrimPrefix(suffix, ".")
}

// spent says whether the loader has no tries left for the entry.
func (e Entry) spent() bool { return e.Counter.Counted && e.Counter.Left == 0 }

// is says whether both are the same file.
func (e *Entry) is(other *Entry) bool { return e.Dir == other.Dir && e.Path == other.Path }

// afterAllTries is the entry as its file is called when the loader has used all tries.
func (e Entry) afterAllTries() Entry {
	suffix := path.Ext(e.Name)
	_, plain := counterOf(e.Name)
	e.Name = fmt.Sprintf("%s+0-%d%s", strings.TrimSuffix(plain, suffix), e.Counter.Done+e.Counter.Left, suffix)
	e.Counter.Left, e.Counter.Done = 0, e.Counter.Done+e.Counter.Left
	return e
}

// arrange sorts the entries as the loader's menu does. id is how that loader spells their ids.
func arrange(entries []Entry, id func(Entry) string) {
	slices.SortStableFunc(entries, func(a, b Entry) int {
		if r := cmp.Or(order(a.spent(), b.spent()), order(a.SortKey == "", b.SortKey == "")); r != 0 {
			return r
		}
		if a.SortKey != "" {
			if r := cmp.Or(strings.Compare(a.SortKey, b.SortKey), strings.Compare(a.Machine, b.Machine),
				-compareVersions(a.Version, b.Version)); r != 0 {
				return r
			}
		}
		if r := -compareVersions(id(a), id(b)); r != 0 || !a.Counter.Counted || !b.Counter.Counted {
			return r
		}
		return cmp.Or(cmp.Compare(b.Counter.Left, a.Counter.Left), cmp.Compare(a.Counter.Done, b.Counter.Done))
	})
}

var (
	initArgument = regexp.MustCompile(`(?:^|[\s"'])init=(/nix/store/[^\s"']+)`)
	baseName     = regexp.MustCompile(`^/nix/store/([0-9a-z]{32}-[0-9A-Za-z+\-._?=]+)(?:/|$)`)
)

// Closure returns the closure that a kernel command line's init= names, or "" if there is none. Of several init= the
// last one counts, as it does for the kernel.
func Closure(commandLine string) string {
	closure := ""
	for _, m := range initArgument.FindAllStringSubmatch(commandLine, -1) {
		closure = ""
		if name := baseName.FindStringSubmatch(m[1]); name != nil {
			closure = name[1]
		}
	}
	return closure
}
