package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"nixfleet/pki"
)

// Whatever could happen at one moment in either order happens at two moments
// here, and the seed says which comes first: a message takes some nanoseconds
// of its own, and so do the start of a host, an event and a wake.

// apart is less than anything waits for, and more than enough to tell moments
// apart.
const apart = time.Millisecond

// aside is a time below apart that the seed chose for what the words name.
func (w *world) aside(words ...any) time.Duration {
	return time.Duration(stream(w.scenario.seed, words...).Int64N(int64(apart)))
}

// rest sleeps for aside, unless the world ends.
func (w *world) rest(words ...any) {
	select {
	case <-w.ctx.Done():
	case <-time.After(w.aside(words...)):
	}
}

// rest sleeps for an aside of the host and of the moment.
func (h *host) rest(ctx context.Context, what string) {
	h.wait(ctx, h.w.aside(what, h.name, time.Since(h.w.began)))
}

// jitter is a random time below its argument that depends on who draws it, when
// and how much, and not on who drew before.
func (w *world) jitter(who string) func(time.Duration) time.Duration {
	return func(d time.Duration) time.Duration {
		return time.Duration(stream(w.scenario.seed, "jitter", who, time.Since(w.began), d).Int64N(int64(d)))
	}
}

// seededKey is an ed25519 key that the seed gives to whom the words name: host
// keys are declared, and the names of releases are hashes of that.
func (w *world) seededKey(words ...any) *pki.PrivateKey {
	seed := sha256.Sum256(fmt.Append(nil, w.scenario.seed, words))
	key, err := pki.ParsePrivateKey(seed[:])
	w.must(err)
	return key
}

// fingerprint is the hash of all that the control plane's log of events said.
func (w *world) fingerprint() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := sha256.New()
	for _, e := range w.events {
		doc, err := pki.Marshal(e)
		w.must(err)
		h.Write(doc)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// note writes into the trace what a host does, and when.
func (w *world) note(what string, h *host, about string) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%s %d %s %s\n", what, time.Since(w.began), h.name, about)
	}
}
