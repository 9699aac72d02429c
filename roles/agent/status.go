package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

const statusName = "status.json"

// status is what `agent status` shows of the running agent.
type status struct {
	Hostname       string        `json:"hostname" shape:"R"`
	Running        string        `json:"running" shape:"D"`
	Specialisation string        `json:"specialisation" shape:"D"`
	Told           string        `json:"told" shape:"D"` // newest verified target
	Rollout        string        `json:"rollout" shape:"D"`
	Phase          string        `json:"phase" shape:"D"`
	Waiting        string        `json:"waiting" shape:"D"` // what it waits for, in words
	Next           string        `json:"next" shape:"D"`    // what a person can do
	Held           string        `json:"held" shape:"D"`
	RebootPending  string        `json:"rebootPending" shape:"D"`
	Stale          string        `json:"stale" shape:"D"`
	LastContact    pki.Timestamp `json:"lastContact" shape:"R"`
	ContactError   string        `json:"contactError" shape:"D"`
	MarkCopy       string        `json:"markCopy" shape:"D"` // directory of the second copy of the mark
	NextBoot       string        `json:"nextBoot" shape:"D"` // in words, where there is something to say
}

// statusFile writes the status when it changes, at most a few times a second.
type statusFile struct {
	dir journal.Directory

	mu      sync.Mutex
	v       status
	written status
	turned  time.Time

	overdue atomic.Bool   // it shows trouble that the next answer ends
	refused atomic.Uint64 // times that what the control plane said was not believed
}

// openStatus goes on from what the agent before wrote; what cannot be read is
// written anew.
func openStatus(dir journal.Directory, hostname string) *statusFile {
	f := &statusFile{dir: dir, turned: time.Now()}
	if dir.Read(statusName, &f.v) != nil {
		f.v = status{}
	}
	f.v.Hostname, f.v.ContactError = hostname, ""
	return f
}

// note changes the status. The file is for people: a failure to write it harms
// nothing and is left for the next time.
func (f *statusFile) note(change func(*status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.v)
	f.v.bound()
	same := f.v
	same.LastContact = f.written.LastContact
	if same == f.written && f.v.LastContact.Sub(f.written.LastContact.Time) < time.Minute {
		return
	}
	if f.dir.Write(statusName, f.v) == nil {
		f.written = f.v
	}
}

// maxStatusText bounds each text of the status, in bytes.
const maxStatusText = 1000

// bound cuts what others may have had their hand in.
func (s *status) bound() {
	for _, text := range []*string{&s.Told, &s.Rollout, &s.Waiting, &s.Next, &s.Held, &s.Stale, &s.ContactError} {
		*text = protocol.Clip(*text, maxStatusText)
	}
}

// waiting says what the agent waits for.
func (f *statusFile) waiting(format string, args ...any) {
	f.note(func(s *status) { s.Waiting, s.Next = fmt.Sprintf(format, args...), "" })
}

// rest sleeps, and tells systemd's watchdog meanwhile that this is what the loop does.
func (f *statusFile) rest(ctx context.Context, pause time.Duration) error {
	for end := time.Now().Add(pause); ; {
		f.turn()
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err()
		}
		if err := nixops.Sleep(ctx, min(left, time.Minute)); err != nil {
			return err
		}
	}
}

// turn notes that the loop goes on.
func (f *statusFile) turn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turned = time.Now()
}

func (f *statusFile) lastTurn() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.turned
}

// report is the whole of `agent status --json`.
type localStatus struct {
	Agent      *status          `json:"agent"`   // null when no agent has run
	Current    string           `json:"current"` // what runs now
	Profile    string           `json:"profile"` // what is set
	Boot       string           `json:"bootDefault"`
	BootOnce   string           `json:"bootOnce"`   // instead, at the next boot only
	Activation *journal.Journal `json:"activation"` // under way
	Confirmed  *confirmed       `json:"confirmed"`
	Quarantine *quarantine      `json:"quarantine"`
	Hold       *holdState       `json:"hold"`
	Mark       *verify.Mark     `json:"mark"`
	Problems   []string         `json:"problems"`
}

// gather reads the state directory and the host, and keeps going where
// something cannot be read.
func gather(ctx context.Context, dir journal.Directory, host nixops.Host) localStatus {
	var out localStatus
	out.Problems = []string{}
	problem := func(err error) { out.Problems = append(out.Problems, err.Error()) }
	load := func(name string, v any) bool {
		err := dir.Read(name, v)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problem(fmt.Errorf("%s: %w", name, err))
		}
		return err == nil
	}
	var s status
	if load(statusName, &s) {
		out.Agent = &s
	}
	var j journal.Journal
	if load(journal.File, &j) {
		out.Activation = &j
	}
	var c confirmed
	if load(confirmedFile, &c) {
		out.Confirmed = &c
	}
	var q quarantine
	if load(quarantineFile, &q) {
		out.Quarantine = &q
	}
	var h holdState
	if load(journal.HoldFile, &h) {
		out.Hold = &h
	}
	var m verify.Mark
	if load(verify.MarkFile, &m) {
		out.Mark = &m
	}
	read := func(from func(context.Context) (string, error)) string {
		name, err := from(ctx)
		if err != nil {
			problem(err)
		}
		return name
	}
	out.Current = read(host.CurrentSystem)
	out.Profile = read(host.Profile)
	out.Boot = read(host.BootDefault)
	out.BootOnce = read(host.BootOnce)
	return out
}

// print is the status on one screen.
func (l localStatus) print(w io.Writer, now time.Time) error {
	var rows [][]string
	row := func(name, format string, args ...any) {
		if value := fmt.Sprintf(format, args...); strings.TrimSpace(value) != "" {
			rows = append(rows, []string{name, command.Plain(value)})
		}
	}
	row("runs", "%s", l.Current)
	if l.Profile != l.Current {
		row("profile", "%s", l.Profile)
	}
	if l.Boot != "" && l.Boot != l.Current {
		row("boots next", "%s", l.Boot)
	}
	row("boots once", "%s", l.BootOnce)
	if a := l.Agent; a != nil {
		row("host", "%s", a.Hostname)
		row("told", "%s", a.Told)
		row("rollout", "%s", a.Rollout)
		row("phase", "%s", a.Phase)
		row("waits for", "%s", a.Waiting)
		row("boot loader", "%s", a.NextBoot)
		row("reboot pending", "%s", a.RebootPending)
		row("held", "%s", a.Held)
		row("release", "%s", a.Stale)
		row("last contact", "%s", ago(a.LastContact.Time, now))
		row("contact error", "%s", a.ContactError)
		row("next", "%s", a.Next)
	} else {
		row("agent", "has not run here yet; see journalctl -u nixfleet-agent")
	}
	if j := l.Activation; j != nil {
		row("activation", "%s of %s since %s", j.Step, j.Closure, ago(j.Since.Time, now))
	}
	if h := l.Hold; h != nil {
		row("hold", "%s, %s; nixfleet agent resume ends it", h.text(), ago(h.At.Time, now))
	}
	if c := l.Confirmed; c != nil {
		row("confirmed", "%s, %s", c.Closure, ago(c.At.Time, now))
	}
	if q := l.Quarantine; q != nil && q.over() {
		row("quarantined", "%s: %s", q.Closure, q.Reason)
	}
	for _, p := range l.Problems {
		row("problem", "%s", p)
	}
	return command.Table(w, rows)
}

func ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "never"
	}
	return now.Sub(t).Round(time.Second).String() + " ago"
}
