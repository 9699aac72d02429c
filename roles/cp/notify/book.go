package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"nixfleet/nixops/disk"
)

const (
	bookName = "notifications.json"
	maxBook  = 64 << 20
	// MaxQueue bounds the notices that wait for one receiver; the oldest is given up for a newer one.
	MaxQueue = 1000
	// giveUp is the age at which a notice that cannot be delivered is given up.
	giveUp = 72 * time.Hour
)

// letter is a notice that waits for a receiver.
type letter struct {
	Notice   Notice    `json:"notice"`
	Attempts int       `json:"attempts,omitempty"`
	Due      time.Time `json:"due"`
}

// written is what the book holds on disk.
type written struct {
	Primed bool                 `json:"primed"`
	Raised map[string]Condition `json:"raised"`
	Queues map[string][]letter  `json:"queues"` // by receiver
}

// Book remembers what holds, what people were told of it, and what waits to be told. It lives in a file of its own:
// whoever loses it is told once more of what holds.
type Book struct {
	path  string
	on    map[string]bool // kinds that people want to know of
	ended func(receiver, outcome string)
	more  chan struct{}

	mu sync.Mutex
	w  written
}

// Outcomes of a notice.
const (
	outcomeDelivered = "delivered"
	outcomeFailed    = "failed" // and tried again
	outcomeDropped   = "dropped"
)

// OpenBook reads the book of a state directory, for these receivers. A file that cannot be read is begun anew, and the
// error says why. ended is told of each attempt.
func OpenBook(dir string, kinds, receivers []string, ended func(receiver, outcome string)) (*Book, error) {
	b := &Book{path: filepath.Join(dir, bookName), on: map[string]bool{}, ended: ended, more: make(chan struct{}, 1)}
	for _, kind := range kinds {
		b.on[kind] = true
	}
	data, err := disk.Read(b.path, maxBook)
	switch {
	case err == nil:
		if err = json.Unmarshal(data, &b.w); err != nil {
			err = fmt.Errorf("read %s: %w", b.path, err)
			b.w = written{}
		}
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if b.w.Raised == nil {
		b.w.Raised = map[string]Condition{}
	}
	queues := map[string][]letter{}
	for _, receiver := range receivers {
		queues[receiver] = b.w.Queues[receiver]
	}
	b.w.Queues = queues
	return b, err
}

// Holds reports whether people know that a condition of this kind holds for a host of a channel.
func (b *Book) Holds(kind, channel, host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.w.Raised[(&Condition{Kind: kind, Channel: channel}).key()]
	_, found := slices.BinarySearch(c.Hosts, host)
	return found
}

// Look compares what holds now with what people were told, and queues what is new. The first look of all says nothing
// of rollouts that had converged before.
func (b *Book) Look(holding []Condition, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := maps.Clone(b.w.Raised)
	changed := !b.w.Primed
	for _, c := range holding {
		if !b.on[c.Kind] {
			continue
		}
		key := c.key()
		old, known := before[key]
		delete(before, key)
		c.Since = now.UTC()
		if known && (c.Kind != KindConverged || c.Subject == old.Subject) {
			c.Since = old.Since
		} else {
			known = false
		}
		fresh := without(c.Hosts, old.Hosts)
		if !known || len(fresh) > 0 {
			if b.w.Primed || c.Kind != KindConverged {
				b.queue(noticeOf(c, fresh, now, false), now)
			}
		}
		changed = changed || !known || !slices.Equal(c.Hosts, old.Hosts)
		b.w.Raised[key] = c
	}
	for key, c := range before {
		if c.Kind == KindConverged {
			continue // it did converge, whatever came next
		}
		delete(b.w.Raised, key)
		changed = true
		if b.on[c.Kind] {
			b.queue(noticeOf(c, c.Hosts, now, true), now)
		}
	}
	b.w.Primed = true
	if !changed {
		return nil
	}
	return b.save()
}

// without are the sorted words that are not among the other sorted ones.
func without(words, others []string) []string {
	var out []string
	for _, word := range words {
		if _, found := slices.BinarySearch(others, word); !found {
			out = append(out, word)
		}
	}
	return out
}

// queue puts a notice behind those that wait for each receiver. Its caller holds the lock.
func (b *Book) queue(n Notice, now time.Time) {
	for receiver, waiting := range b.w.Queues {
		if len(waiting) >= MaxQueue {
			waiting = waiting[1:]
			b.ended(receiver, outcomeDropped)
		}
		b.w.Queues[receiver] = append(slices.Clone(waiting), letter{Notice: n, Due: now})
	}
	b.wake()
}

func (b *Book) wake() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// save writes the book. Its caller holds the lock.
func (b *Book) save() error {
	data, err := json.Marshal(&b.w)
	if err != nil {
		return err
	}
	return disk.Replace(b.path, data, 0o600)
}

// due is the notice that a receiver is to be told first, and when.
func (b *Book) due(receiver string) (letter, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := b.w.Queues[receiver]
	if len(waiting) == 0 {
		return letter{}, false
	}
	return slices.MinFunc(waiting, func(a, c letter) int { return a.Due.Compare(c.Due) }), true
}

// Waiting is how many notices wait for each receiver.
func (b *Book) Waiting() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]int{}
	for receiver, waiting := range b.w.Queues {
		out[receiver] = len(waiting)
	}
	return out
}

// tried notes how the delivery of a notice ended.
func (b *Book) tried(receiver string, id string, failure error, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := slices.Clone(b.w.Queues[receiver])
	at := slices.IndexFunc(waiting, func(l letter) bool { return l.Notice.ID == id })
	if at < 0 {
		return nil // it was given up for a newer one meanwhile
	}
	l := &waiting[at]
	switch {
	case failure == nil:
		b.ended(receiver, outcomeDelivered)
		waiting = slices.Delete(waiting, at, at+1)
	case now.Sub(l.Notice.At) > giveUp:
		b.ended(receiver, outcomeDropped)
		waiting = slices.Delete(waiting, at, at+1)
	default:
		b.ended(receiver, outcomeFailed)
		l.Due = now.Add(pause(l.Attempts))
		l.Attempts++
	}
	b.w.Queues[receiver] = waiting
	return b.save()
}

// pause is how long a delivery that failed waits for the next attempt: 5 seconds, twice as long each time, and at most
// an hour.
func pause(attempts int) time.Duration {
	return min(5*time.Second<<min(attempts, 10), time.Hour)
}

// holding are the conditions that hold now, those of a rollout that converged within the last hour included.
func (b *Book) holding(now time.Time) []Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Condition
	for _, key := range slices.Sorted(maps.Keys(b.w.Raised)) {
		if c := b.w.Raised[key]; c.Kind != KindConverged || now.Sub(c.Since) < time.Hour {
			out = append(out, c)
		}
	}
	return out
}
