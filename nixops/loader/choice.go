package loader

import (
	"fmt"
	"slices"
	"strings"
)

// Choice is what a loader starts. Where nothing is known, Closure is "" and Unknown says why.
type Choice struct {
	Closure string
	Entry   *Entry // of systemd-boot's menu; nil with other loaders
	Unknown string
	Guard   Guard // what the entry's boot counter does
}

func unknown(format string, args ...any) Choice { return Choice{Unknown: fmt.Sprintf(format, args...)} }

// Guard says what a boot counter does for the chosen entry.
type Guard int

// The kinds of Guard. A counter protects where the loader goes on to another entry when no tries are left. It does not
// under a `default` that names the entry exactly: such an entry is booted again and again.
const (
	NotCounted Guard = iota
	CountedProtects
	CountedInVain
)

// behaviour is one way in which systemd-boot works. Versions differ.
type behaviour struct {
	counterInID bool // 252; not 257.13 and 262
	preferred   bool // 260 and later
	// passesOver says that LoaderEntryPreferred, too, passes over an entry without tries. Nobody has measured it.
	passesOver bool
}

// behaviours are the ways in which the loader may work that starts at the next boot.
func (m *Menu) behaviours() []behaviour {
	words := firstOf(m.Version, m.Variables.Info)
	version := releaseOf(words)
	inID, preferred := []bool{false, true}, []bool{false, true}
	same := m.Version == "" || m.Variables.Info == "" || releaseOf(m.Variables.Info) == version
	switch spelt, known := m.spelling(); {
	case same && known:
		inID = []bool{spelt}
	case version.major >= 260 || version.major == 257 && version.minor >= 13:
		inID = []bool{false}
	case version.major > 0 && version.major <= 252:
		inID = []bool{true}
	}
	if version.major > 0 {
		preferred = []bool{version.major >= 260}
	}
	var all []behaviour
	for _, id := range inID {
		for _, p := range preferred {
			all = append(all, behaviour{id, p, true}, behaviour{id, p, false})
		}
	}
	return all
}

// spelling looks at the ids that the loader of this boot reported: with counters, or without where a file has one.
func (m *Menu) spelling() (counterInID, known bool) {
	plain := map[string]bool{}
	for _, e := range m.Entries {
		if e.Counter.Counted {
			plain[e.ID()] = true
		}
	}
	for _, id := range m.Variables.Entries {
		if c, _ := counterOf(id); c.Counted {
			return true, true
		}
		known = known || plain[strings.ToLower(id)]
	}
	return false, known
}

// Default is what the loader starts unless it was told something for one boot. It is known only if every version that
// may be installed would start the same.
func (m *Menu) Default() Choice {
	return m.agreed(func(entries []Entry, b behaviour) *Entry { return m.regular(entries, b) })
}

// Once is what LoaderEntryOneShot makes the next boot start, and whether it is set. A pattern that no entry matches
// makes the loader start its default without a word.
func (m *Menu) Once() (c Choice, set bool) {
	if m.Variables.OneShot == "" {
		return Choice{}, false
	}
	return m.agreed(func(entries []Entry, b behaviour) *Entry {
		if e := first(entries, b, m.Variables.OneShot); e != nil {
			return e
		}
		return m.regular(entries, b)
	}), true
}

func (m *Menu) agreed(choose func([]Entry, behaviour) *Entry) Choice {
	if len(m.Trouble) > 0 {
		return unknown("%s", m.Trouble[0])
	}
	var chosen *Entry
	guard := NotCounted
	for i, b := range m.behaviours() {
		entries := m.menu(b)
		e := choose(entries, b)
		switch {
		case e == nil:
			return unknown("systemd-boot has no entry that it can start")
		case i > 0 && !e.is(chosen):
			return unknown("one version of systemd-boot starts %s here, another one %s", chosen.ID(), e.ID())
		}
		chosen, guard = e, max(guard, guardOf(entries, b, e, choose))
	}
	switch {
	case chosen.Closure == "":
		return unknown("systemd-boot's entry %s does not say which system it starts", chosen.ID())
	case len(chosen.Missing) > 0:
		c := unknown("systemd-boot's entry %s needs %s, which is not there", chosen.ID(), chosen.Missing[0])
		c.Entry = chosen
		return c
	}
	return Choice{Closure: chosen.Closure, Entry: chosen, Guard: guard}
}

// menu is the list that the loader shows. The first of two entries with one id and one place in the order is the ESP's.
func (m *Menu) menu(b behaviour) []Entry {
	entries := slices.DeleteFunc(slices.Clone(m.Entries), func(e Entry) bool { return e.NoKernel })
	arrange(entries, b.id)
	return entries
}

// id is an entry's id as such a loader spells it.
func (b behaviour) id(e Entry) string {
	if b.counterInID {
		return strings.ToLower(e.Name)
	}
	return e.ID()
}

func first(entries []Entry, b behaviour, pattern string) *Entry {
	for i := range entries {
		if pattern != "" && matches(pattern, b.id(entries[i])) {
			return &entries[i]
		}
	}
	return nil
}

// regular is the loader's choice without a one-shot.
func (m *Menu) regular(entries []Entry, b behaviour) *Entry {
	lively := slices.DeleteFunc(slices.Clone(entries), Entry.spent)
	byVariable := m.Variables.Default
	for _, rule := range []struct {
		pattern string
		holds   bool
		among   []Entry
	}{
		{m.Variables.Preferred, b.preferred && b.passesOver, lively},
		{m.Variables.Preferred, b.preferred && !b.passesOver, entries},
		{m.Preferring, b.preferred, lively},
		{m.saved(byVariable), true, entries},
		{m.saved(m.ByDefault), true, entries},
	} {
		if e := first(rule.among, b, rule.pattern); rule.holds && e != nil {
			return e
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return &entries[0]
}

// saved reads @saved, the entry that was booted last.
func (m *Menu) saved(pattern string) string {
	if strings.EqualFold(pattern, "@saved") {
		return m.Variables.LastBooted
	}
	return pattern
}

// guardOf asks what the loader starts when the entry has no tries left.
func guardOf(entries []Entry, b behaviour, e *Entry, choose func([]Entry, behaviour) *Entry) Guard {
	if !e.Counter.Counted {
		return NotCounted
	}
	later := slices.Clone(entries)
	for i := range later {
		if later[i].is(e) {
			later[i] = later[i].afterAllTries()
		}
	}
	arrange(later, b.id)
	if next := choose(later, b); next != nil && !next.is(e) && !next.spent() {
		return CountedProtects
	}
	return CountedInVain
}
