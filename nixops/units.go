package nixops

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Unit is what is known of one unit of the machine.
type Unit struct {
	Name      string
	Active    bool          // it runs, or has done what it had to
	Failed    bool          // it failed, or waits to be restarted after a failure
	Restarts  uint64        // automatic ones, since it was started
	EndsWell  bool          // its last run, of those that ended, was a success
	Age       time.Duration // since it was last started; 0 is not known
	Declared  bool          // a file of the running closure, or its fstab, brings it
	Transient bool          // made at run time: its name or its file says so
	Triggered bool          // a timer, socket or path starts it
}

// flaps says whether the unit was restarted after failures.
func (u Unit) flaps() bool { return u.Restarts > 0 && !u.EndsWell }

// ofUsers are units that belong to somebody who is logged in, whatever file they have.
var ofUsers = regexp.MustCompile(`^(user|user-runtime-dir)@[^.]+\.service$|^user-\d+\.slice$|\.scope$`)

// madeUp are names that a program invents for a unit: those of systemd-run, and those of
// the health checks of containers, which are the container's id and a random number.
var madeUp = regexp.MustCompile(`^run-(r[0-9a-f]{16,}|u\d+|p\d+-i\d+)\.|^[0-9a-f]{12,64}-[0-9a-f]{8,}\.|^[0-9a-f]{32,64}\.(service|timer)$`)

// MadeUp says whether a program has invented the name of a unit.
func MadeUp(name string) bool { return madeUp.MatchString(name) }

// transientDir is where systemd keeps the files of units that programs make.
const transientDir = "/run/systemd/transient/"

// origin says whether a closure brings a unit, and whether a program made it up, from
// the file that the unit was read from and the one that this was generated from.
func origin(name, fragment, source string) (declared, transient bool) {
	if strings.HasPrefix(fragment, transientDir) || madeUp.MatchString(name) {
		return false, true
	}
	if ofUsers.MatchString(name) || fragment == "" || strings.HasSuffix(name, ".device") {
		return false, false
	}
	if !strings.HasPrefix(fragment, "/run/") {
		return true, false
	}
	// The fstab of the closure brings mounts by a generator. Others look at what the
	// machine has.
	generated := strings.HasPrefix(fragment, "/run/systemd/generator")
	return generated && (strings.HasPrefix(source, "/etc/") || strings.HasPrefix(source, storeDir+"/")), false
}

// Baseline is what the units of a machine did before a switch. It is kept in the
// journal of the activation.
type Baseline struct {
	Failed []string `json:"failed" shape:"D"` // failed, or waited to be restarted after a failure
	Ran    []string `json:"ran" shape:"D"`    // ran, and nothing but a switch or a person starts them
	// restarts a minute of those that had failed and were restarted
	Flapping map[string]float64 `json:"flapping" shape:"D"`
}

// NewBaseline records units at a moment, which is given since the boot.
func NewBaseline(units []Unit, now time.Duration) Baseline {
	b := Baseline{Failed: []string{}, Ran: []string{}, Flapping: map[string]float64{}}
	for _, u := range units {
		if u.Failed {
			b.Failed = append(b.Failed, u.Name)
		}
		if u.Active && !u.Transient && !ofUsers.MatchString(u.Name) {
			b.Ran = append(b.Ran, u.Name)
		}
		if u.flaps() {
			b.Flapping[u.Name] = rate(u, now)
		}
	}
	slices.Sort(b.Failed)
	slices.Sort(b.Ran)
	return b
}

// rate is how many times a minute a unit is restarted: on the average since the boot, or
// once since it was last started where that is more often.
func rate(u Unit, now time.Duration) float64 {
	often := float64(u.Restarts) / max(now.Minutes(), 1.0/60)
	if u.Age > 0 {
		often = max(often, 1/max(u.Age.Minutes(), 1.0/60))
	}
	return often
}

// And is the base line with more units that had failed before, which an agent without
// base lines has recorded.
func (b Baseline) And(failed []string) Baseline {
	b.Failed = slices.Concat(b.Failed, failed)
	return b
}

// counts says whether a release can be blamed for a unit: it brings the unit, or the
// unit ran before and should still.
func (b Baseline) counts(u Unit) bool {
	return !u.Transient && (u.Declared || slices.Contains(b.Ran, u.Name))
}

// Watch compares units after a switch with those before. It is not safe for concurrent use.
type Watch struct {
	before Baseline
	began  time.Time
	first  map[string]uint64
}

// Watch begins to watch at a moment.
func (b Baseline) Watch(now time.Time) *Watch {
	return &Watch{before: b, began: now, first: map[string]uint64{}}
}

// slack is how much more often than before a unit may be restarted.
const slack = 1.5

// Look says what is wrong with the units by now, "" if nothing is. A unit that failed
// before, or that was restarted as often, speaks against no release, nor does one that
// ends well and starts again.
func (w *Watch) Look(units []Unit, now time.Time) string {
	if failing := w.before.Failing(units); failing != "" {
		return failing
	}
	var flapping []string
	for _, u := range units {
		if !w.before.counts(u) || slices.Contains(w.before.Failed, u.Name) {
			continue
		}
		before, flapped := w.before.Flapping[u.Name]
		first, seen := w.first[u.Name]
		if !seen || u.Restarts < first { // started anew, it counts anew
			w.first[u.Name] = u.Restarts
			continue
		}
		allowed := 0.0
		if flapped {
			allowed = 1 + math.Ceil(before*now.Sub(w.began).Minutes()*slack)
		}
		if more := u.Restarts - first; !u.EndsWell && float64(more) > allowed {
			flapping = append(flapping, u.Name)
		}
	}
	slices.Sort(flapping)
	switch len(flapping) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("unit %s was restarted while it was watched", flapping[0])
	}
	return fmt.Sprintf("units were restarted while they were watched: %v", flapping)
}

// Failing says which units fail that had not before, of those that a release can be
// blamed for; "" when none does.
func (b Baseline) Failing(units []Unit) string {
	var failed []string
	for _, u := range units {
		_, flapped := b.Flapping[u.Name]
		if u.Failed && !flapped && b.counts(u) && !slices.Contains(b.Failed, u.Name) {
			failed = append(failed, u.Name)
		}
	}
	if len(failed) == 0 {
		return ""
	}
	slices.Sort(failed)
	return fmt.Sprintf("units failed that had not before: %v", failed)
}

func (m *machine) Units(ctx context.Context) ([]Unit, error) {
	units, err := m.super.units(ctx)
	if err != nil {
		return nil, fmt.Errorf("units: %w", err)
	}
	slices.SortFunc(units, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
	return units, nil
}

func (m *machine) StartAgain(ctx context.Context, ran []string) ([]string, error) {
	down, err := m.super.startAgain(ctx, ran)
	if err != nil {
		return down, fmt.Errorf("start units that ran before: %w", err)
	}
	return down, nil
}
