package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

const (
	reportsFile = "reports.json"
	// maxReports and maxOutbox, the latter in bytes, bound the queue; the oldest give way.
	maxReports = 64
	maxOutbox  = 1 << 20
)

// outbox keeps reports on disk until the control plane has them. Those of one rollout
// are sent in order. Those of another may overtake them, since a host's reports move only
// the rollout they name; those of none are a rollout of their own here.
type outbox struct {
	dir journal.Directory

	mu      sync.Mutex
	queue   []*protocol.ReportRequest
	refused map[string]refusal // by rollout: of its first report
	turns   map[string]turn    // the same
}

// refusal is how often a report was refused by a control plane that answers otherwise.
type refusal struct {
	Since pki.Timestamp `json:"since" shape:"R"`
	Times uint32        `json:"times" shape:"R"`
}

// turn is when a report was sent in vain and when it is sent again.
type turn struct{ tried, due time.Time }

type outboxFile struct {
	Reports []*protocol.ReportRequest `json:"reports" shape:"R"`
	Refused map[string]refusal        `json:"refused,omitempty" shape:"D"`
}

func openOutbox(dir journal.Directory) (*outbox, error) {
	o := &outbox{dir: dir, refused: map[string]refusal{}, turns: map[string]turn{}}
	var f outboxFile
	switch err := dir.Read(reportsFile, &f); {
	case err == nil:
		o.queue = f.Reports
		if f.Refused != nil {
			o.refused = f.Refused
		}
	case errors.Is(err, journal.ErrUnfit):
		// Reports are worth less than a start of the agent.
		_, err := dir.SetAside(reportsFile)
		return o, err
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return o, nil
}

// rolloutOf is the rollout that a report is of, "" if of none.
func rolloutOf(r *protocol.ReportRequest) string { return text(r.Rollout) }

// sizeOf is about what a report takes on disk, in bytes.
func sizeOf(r *protocol.ReportRequest) int {
	return len(r.Details) + len(rolloutOf(r)) + len(r.Hostname) + len(r.AgentVersion) + len(r.Event) + 200
}

// add queues a report for good and names those that gave way.
func (o *outbox) add(r *protocol.ReportRequest) (lost []*protocol.ReportRequest, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	size := sizeOf(r)
	if size > maxOutbox {
		return nil, fmt.Errorf("it has %d bytes", size)
	}
	o.queue = append(o.queue, r)
	for _, other := range o.queue[:len(o.queue)-1] {
		size += sizeOf(other)
	}
	for len(o.queue) > maxReports || size > maxOutbox {
		first := o.queue[0]
		size -= sizeOf(first)
		lost = append(lost, first)
		o.drop(first)
	}
	return lost, o.write()
}

// waiting reports whether a report of a rollout is not delivered yet.
func (o *outbox) waiting(rollout string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.queue, func(r *protocol.ReportRequest) bool { return rolloutOf(r) == rollout })
}

// empty reports whether every report is delivered.
func (o *outbox) empty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue) == 0
}

// next is what to send now; nil: nothing. Only the first of a rollout is ever next, and
// of several that which was not tried for the longest time, in their order. Rollouts to
// skip are those that had their turn.
func (o *outbox) next(now time.Time, skip map[string]bool) *protocol.ReportRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	var next *protocol.ReportRequest
	seen := map[string]bool{}
	for _, r := range o.queue {
		rollout := rolloutOf(r)
		if seen[rollout] {
			continue
		}
		seen[rollout] = true
		at := o.turns[rollout]
		if skip[rollout] || now.Before(at.due) {
			continue
		}
		if next == nil || at.tried.Before(o.turns[rolloutOf(next)].tried) {
			next = r
		}
	}
	return next
}

// done drops a report that was taken or given up.
func (o *outbox) done(r *protocol.ReportRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.drop(r) {
		return nil // it gave way to others meanwhile
	}
	return o.write()
}

// vain notes that a report was sent at the given time and not taken.
func (o *outbox) vain(r *protocol.ReportRequest, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.queue, r) {
		o.turns[rolloutOf(r)] = turn{tried: now}
	}
}

// refuse notes that a report was refused though the control plane answers otherwise. It
// is sent again at the next delivery, and then after longer and longer pauses. wall is
// the time of day.
func (o *outbox) refuse(r *protocol.ReportRequest, now, wall time.Time) (refusal, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.queue, r) {
		return refusal{}, nil
	}
	rollout := rolloutOf(r)
	to, ok := o.refused[rollout]
	if !ok {
		to.Since = pki.At(wall.Truncate(time.Millisecond))
	}
	to.Times++
	o.refused[rollout] = to
	pause := time.Duration(0)
	if to.Times > 1 {
		pause = min(sayAgain<<min(to.Times-2, 20), sayLast)
	}
	o.turns[rollout] = turn{now, now.Add(pause)}
	return to, o.write()
}

// drop needs o.mu.
func (o *outbox) drop(r *protocol.ReportRequest) bool {
	i := slices.Index(o.queue, r)
	if i < 0 {
		return false
	}
	o.queue = slices.Delete(o.queue, i, i+1)
	delete(o.refused, rolloutOf(r))
	delete(o.turns, rolloutOf(r))
	return true
}

// write needs o.mu.
func (o *outbox) write() error {
	if len(o.queue) == 0 {
		return o.dir.Remove(reportsFile)
	}
	return o.dir.Write(reportsFile, outboxFile{o.queue, o.refused})
}
