package agent

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/protocol"
)

// bootHour is how long an answer about the next boot is good for while nothing changes: an ESP that is mounted on
// demand is left alone in between.
const bootHour = time.Hour

// bootWatch remembers what boots next.
type bootWatch struct {
	host nixops.Host
	log  zerolog.Logger

	mu     sync.Mutex
	state  string // of the host when it was looked at
	at     time.Time
	next   nixops.NextBoot
	shouts string // the trouble that was logged last
}

// stamped is a host that can tell cheaply whether the boot loader's files or variables have changed: a partition that
// is mounted on demand is not mounted for it.
type stamped interface{ BootStamp(context.Context) string }

// look returns what boots next. state names all that changes it, as far as that is known; while it stays the same the
// loader is asked once an hour.
func (b *bootWatch) look(ctx context.Context, state string) nixops.NextBoot {
	b.mu.Lock()
	defer b.mu.Unlock()
	if state == b.state && time.Since(b.at) < bootHour {
		return b.next
	}
	next, err := b.host.NextBoot(ctx)
	if err != nil {
		return nixops.NextBoot{Unknown: err.Error()}
	}
	b.state, b.at, b.next = state, time.Now(), next
	return next
}

// shout logs trouble once, until it is another one or over.
func (b *bootWatch) shout(trouble string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if trouble != b.shouts && trouble != "" {
		b.log.Error().Str("trouble", trouble).Msg("the boot default is not the confirmed generation")
	}
	b.shouts = trouble
}

// bootSentence is what people here are told of the next boot beyond the closure that it starts.
func bootSentence(b *protocol.BootWord) string {
	switch {
	case b.Trouble() != "":
		return "WRONG: " + b.Trouble()
	case b.Next == nil:
		return "not known: " + b.Unknown
	case b.Counter == string(nixops.CounterInVain):
		return b.Loader + " counts its boots but would start it again and again: its default names just this entry"
	case b.Counter == string(nixops.CounterProtects):
		return b.Loader + " goes on to another entry when its tries are used up"
	}
	return ""
}

// bootFacts is what a check-in says of the next boot. It is given the closure that runs, and the id of this boot.
func (c *contact) bootFacts(ctx context.Context, running, bootID string) *protocol.BootWord {
	profile, err := c.host.Profile(ctx)
	if err != nil {
		profile = err.Error()
	}
	state := running + " " + bootID + " " + profile
	if host, ok := c.host.(stamped); ok {
		state += " " + host.BootStamp(ctx)
	}
	j, err := c.dir.Journal()
	if err == nil && j != nil {
		state += " " + string(j.Step) + " " + j.Units.Switch
	}
	next := c.boots.look(ctx, state)
	word := &protocol.BootWord{Loader: next.Loader, Unknown: next.Unknown, Once: next.Once, Counter: string(next.Counter)}
	if next.Default == "" {
		return word
	}
	word.Next = &next.Default
	// While an activation is under way, the default is about to change.
	last := c.memory.confirmed.Load()
	if err == nil && j == nil && last != nil && last.Closure == running && !c.undoer.Runs(ctx, next.Default, running) {
		word.Expected = running
	}
	c.boots.shout(word.Trouble())
	return word
}
