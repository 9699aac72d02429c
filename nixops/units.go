package nixops

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Unit describes one unit of the machine.
type Unit struct {
	Name      string
	Active    bool          // it runs, or has done its work
	Failed    bool          // it failed, or waits to be restarted after a failure
	Restarts  uint64        // automatic restarts since it was started
	EndsWell  bool          // its last run that ended was a success
	Age       time.Duration // time since it was last started; 0 if that is not known
	Declared  bool          // a file of the running closure, or its fstab, declares it
	Transient bool          // a program made it at run time, as its name or its file shows
	Triggered bool          // a timer, socket or path starts it
}

// flaps says whether systemd restarted the unit after failures.
func (u Unit) flaps() bool { return u.Restarts > 0 && !u.EndsWell }

// ofUsers matches units that belong to a user who is logged in, whatever file they have.
var ofUsers = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(user|user-runtime-dir)@[^.]+\.service$|^user-\d+\.slice$|\.scope$`)
})

// madeUp matches the names that programs invent for units: systemd-run does so, and the health checks of containers,
// whose units have the container's id and a random number as their name.
var madeUp = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^run-(r[0-9a-f]{16,}|u\d+|p\d+-i\d+)\.|^[0-9a-f]{12,64}-[0-9a-f]{8,}\.|^[0-9a-f]{32,64}\.(service|timer)$`)
})

// MadeUp says whether a program invented the name of a unit.
func MadeUp(name string) bool { return madeUp().MatchString(name) }

// transientDir is where systemd keeps the files of units that programs make.
const transientDir = "/run/systemd/transient/"

// origin says whether the closure declares a unit, and whether a program made the unit at run time. fragment is the
// file that systemd read the unit from; source is the file from which a generator made the fragment.
func origin(name, fragment, source string) (declared, transient bool) {
	if strings.HasPrefix(fragment, transientDir) || madeUp().MatchString(name) {
		return false, true
	}
	if ofUsers().MatchString(name) || fragment == "" || strings.HasSuffix(name, ".device") {
		return false, false
	}
	if !strings.HasPrefix(fragment, "/run/") {
		return true, false
	}
	// A generator makes mounts of the closure's fstab. Other generators depend on what the machine has, not on
	// the closure.
	generated := strings.HasPrefix(fragment, "/run/systemd/generator")
	return generated && (strings.HasPrefix(source, "/etc/") || strings.HasPrefix(source, storeDir+"/")), false
}

// Baseline describes the state of a machine's units before a switch. The journal of the activation contains it.
type Baseline struct {
	Failed []string `json:"failed" shape:"D"` // units that had failed, or waited to be restarted after a failure
	Ran    []string `json:"ran" shape:"D"`    // units that ran and that only a switch or a person starts
	// Flapping has the restarts per minute of the units that systemd restarted after failures.
	Flapping map[string]float64 `json:"flapping" shape:"D"`
}

// NewBaseline returns the baseline of units at a moment; now is the time since the boot.
func NewBaseline(units []Unit, now time.Duration) Baseline {
	b := Baseline{Failed: []string{}, Ran: []string{}, Flapping: map[string]float64{}}
	for _, u := range units {
		if u.Failed {
			b.Failed = append(b.Failed, u.Name)
		}
		if u.Active && !u.Transient && !ofUsers().MatchString(u.Name) {
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

// rate returns how many times per minute systemd restarts a unit: the average since the boot or, if that is more, one
// restart in the time since the unit was last started.
func rate(u Unit, now time.Duration) float64 {
	often := float64(u.Restarts) / max(now.Minutes(), 1.0/60)
	if u.Age > 0 {
		often = max(often, 1/max(u.Age.Minutes(), 1.0/60))
	}
	return often
}

// And returns the baseline with more units that had failed before. An older agent, which has no baselines, recorded
// those units.
func (b Baseline) And(failed []string) Baseline {
	b.Failed = slices.Concat(b.Failed, failed)
	return b
}

// counts says whether a release is responsible for a unit: the release declares the unit, or the unit ran before the
// switch and should still run.
func (b Baseline) counts(u Unit) bool {
	return !u.Transient && (u.Declared || slices.Contains(b.Ran, u.Name))
}

// Watch compares the units after a switch with those before it. It is not safe for concurrent use.
type Watch struct {
	before Baseline
	began  time.Time
	first  map[string]uint64
}

// Watch returns a Watch that begins at now.
func (b Baseline) Watch(now time.Time) *Watch {
	return &Watch{before: b, began: now, first: map[string]uint64{}}
}

// slack is the factor by which a unit may be restarted more often than before.
const slack = 1.5

// Look says what is wrong with the units at now, or returns "" if nothing is. It ignores a unit that failed before the
// switch, that was restarted as often before, or that ends with success and starts again.
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
		if !seen || u.Restarts < first { // the unit was started again, so its count began again
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

// Failing names the units that fail now, did not fail before the switch and are the release's responsibility. It
// returns "" if there are none.
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
