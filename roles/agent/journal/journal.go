package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
)

// lockPoll is how often a held journal lock is asked for.
const lockPoll = 50 * time.Millisecond

const (
	// File is the journal's name in the state directory.
	File     = "journal.json"
	lockFile = "journal.lock"
	// HoldFile says that root holds this host: nothing begins while it is there.
	HoldFile = "hold.json"
	// CommittedFile is the journal of the confirmed generation.
	CommittedFile = "committed.json"
)

// Step is where in an activation the host is. Each step is written before what it names is
// begun.
type Step string

// The steps in order. An activation ends when its journal is removed.
const (
	Fetching   Step = "fetching"   // nothing has changed yet
	Arming     Step = "arming"     // paths are recorded; the deadline is being armed
	Switching  Step = "switching"  // the target's own switch script runs in its unit
	Checking   Step = "checking"   // the new generation must prove itself
	Proven     Step = "proven"     // local gate passed, one check-in answered
	Committing Step = "committing" // profile and boot default are being set
	Committed  Step = "committed"  // the new generation is the boot default; to be confirmed
	Staging    Step = "staging"    // is being made the boot default without a switch
	Staged     Step = "staged"     // waits for a reboot
	Undoing    Step = "undoing"    // the recorded paths are being restored
	Undone     Step = "undone"     // they are; to be reported
)

// Revertible steps are those that a deadline, a guard or the agent may undo.
var Revertible = []Step{Fetching, Arming, Switching, Checking, Proven, Committing, Undoing}

// Recorded is what the host had before, by path and not by count of generations.
type Recorded struct {
	Current     string `json:"current" shape:"R"` // may be a specialisation
	Profile     string `json:"profile" shape:"R"`
	BootDefault string `json:"bootDefault" shape:"D"` // empty where it is not known
}

// Boots is the closure whose `boot` an undo runs: where the loader does not tell, the profile decides.
func (r Recorded) Boots() string {
	if r.BootDefault != "" {
		return r.BootDefault
	}
	return r.Profile
}

// Journal is one activation on disk.
type Journal struct {
	Step         Step              `json:"step" shape:"R"`
	Closure      string            `json:"closure" shape:"R"`
	RolloutID    string            `json:"rolloutId" shape:"D"`
	Intent       string            `json:"intent" shape:"D"`
	Channel      string            `json:"channel" shape:"D"`
	ChannelRef   string            `json:"channelRef" shape:"D"` // what confirms and reports name
	Wave         uint32            `json:"wave" shape:"D"`
	Attempt      uint32            `json:"attempt" shape:"D"`
	Before       Recorded          `json:"before" shape:"R"`
	BootID       string            `json:"bootId" shape:"R"` // at the start
	StartedAt    pki.Timestamp     `json:"startedAt" shape:"R"`
	Since        pki.Timestamp     `json:"since" shape:"R"` // the step's
	WindowSecs   uint32            `json:"windowSecs" shape:"R"`
	ArmedAtMs    int64             `json:"armedAtMs" shape:"D"` // the deadline was, since the boot, time asleep included
	Units        Units             `json:"units" shape:"R"`
	UnitsBefore  nixops.Baseline   `json:"unitsBefore" shape:"D"`
	FailedBefore []string          `json:"failedBefore" shape:"D"` // the same for agents that know no base line
	Restarts     map[string]uint64 `json:"restarts" shape:"D"`     // after the switch; for such agents, too
	Component    string            `json:"component" shape:"D"`    // staged: what waits for the boot
	BootsOnce    bool              `json:"bootsOnce" shape:"D"`    // staged: the loader falls back to its default
	Reboots      bool              `json:"reboots" shape:"D"`      // staged: the host's policy lets the agent reboot it

	// BootBegun means that a `boot` of the target was begun, which may have changed the boot loader's files.
	BootBegun bool `json:"bootBegun" shape:"D"`

	// Compliance is the mode of the compliance gate for this activation.
	Compliance string `json:"compliance" shape:"D"`

	// GatePassed means that the new generation is healthy and only lacks an answered check-in.
	GatePassed bool `json:"gatePassed" shape:"D"`

	// Reason is why the activation is undone, Blame whether the release is to blame for it,
	// and Recalled whether it is a confirmed generation that the control plane recalls.
	Reason   Reason `json:"reason" shape:"D"`
	Blame    bool   `json:"blame" shape:"D"`
	Recalled bool   `json:"recalled" shape:"D"`
	ExitCode *int32 `json:"exitCode" shape:"N"`
	Output   string `json:"output" shape:"D"`

	// Again means that the switch script died and was run a second time.
	Again bool `json:"again" shape:"D"`
	// UndoTries counts the runs of the previous closure's script that did not end well, and
	// UndoTrouble is what is not as it was although the undo is done.
	UndoTries   uint32 `json:"undoTries" shape:"D"`
	UndoTrouble string `json:"undoTrouble" shape:"D"`
}

// Baseline is what the units did before the switch.
func (j *Journal) Baseline() nixops.Baseline { return j.UnitsBefore.And(j.FailedBefore) }

// ByManifest reports whether the activation is under a control plane without heads, where
// the rollout is the only intent.
func (j *Journal) ByManifest() bool { return j.Intent != "" && j.Intent == j.RolloutID }

// Booted reports whether the generation runs since a boot and was not switched to live.
func (j *Journal) Booted() bool { return j.Component != "" }

// Units are the names of the units of this attempt.
type Units struct {
	Switch   string `json:"switch" shape:"R"`
	Boot     string `json:"boot" shape:"R"`
	Undo     string `json:"undo" shape:"R"`
	Deadline string `json:"deadline" shape:"R"`
}

// NewUnits names the units of an attempt by a tag that no other attempt has.
func NewUnits(tag string) Units {
	return Units{
		Switch: "nixfleet-switch-" + tag, Boot: "nixfleet-boot-" + tag,
		Undo: "nixfleet-undo-" + tag, Deadline: "nixfleet-deadline-" + tag,
	}
}

// FreshUnit names one more unit of a kind, which may be run several times.
func FreshUnit(kind string) string { return fmt.Sprintf("%s-%d", kind, time.Now().UnixNano()) }

// ErrMoved means that another process has taken the journal to another step.
var ErrMoved = errors.New("another process has advanced the activation")

// Lock excludes the agent's commit and an undo by the deadline or the guard from each
// other. The kernel frees it when its holder dies.
func (d Directory) Lock() (unlock func(), err error) {
	// It is asked for again and again rather than waited for: a wait in the kernel ends with
	// nothing but the lock.
	f, err := disk.Lock(context.Background(), d.Path(lockFile), lockPoll)
	if err != nil {
		return nil, fmt.Errorf("lock journal: %w", err)
	}
	return func() { _ = disk.Unlock(f) }, nil
}

// Journal reads the activation under way; nil when there is none.
func (d Directory) Journal() (*Journal, error) {
	var j Journal
	err := d.Read(File, &j)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &j, nil
}

// Advance moves the journal from one step to the next: a compare-and-set under
// the lock. change may fill in more before it is written.
func (d Directory) Advance(now time.Time, from []Step, to Step, change func(*Journal)) (*Journal, error) {
	unlock, err := d.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return d.AdvanceLocked(now, from, to, change)
}

// AdvanceLocked is Advance for a caller that holds the lock.
func (d Directory) AdvanceLocked(now time.Time, from []Step, to Step, change func(*Journal)) (*Journal, error) {
	j, err := d.Journal()
	if err != nil {
		return nil, err
	}
	if j == nil {
		return nil, fmt.Errorf("%w: there is no journal", ErrMoved)
	}
	if !slices.Contains(from, j.Step) {
		return nil, fmt.Errorf("%w: it is %s", ErrMoved, j.Step)
	}
	if change != nil {
		change(j)
	}
	if err := d.Put(now, j, to); err != nil {
		return nil, err
	}
	return j, nil
}

// Put writes an activation down at a step, whatever is on disk. The caller holds the lock, or
// could not have it. On a full disk the reserve makes room for it.
func (d Directory) Put(now time.Time, j *Journal, to Step) error {
	j.Step, j.Since = to, pki.At(now.Truncate(time.Millisecond))
	err := d.Write(File, j)
	if err != nil && disk.IsFull(err) && d.spend() {
		err = d.Write(File, j)
	}
	return err
}

// ErrHeld means that root holds this host.
var ErrHeld = errors.New("root holds this host")

// Begin opens an activation. It refuses with ErrMoved while one is under way, and with
// ErrHeld while root holds the host.
func (d Directory) Begin(j *Journal) error {
	unlock, err := d.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if now, err := d.Journal(); err != nil || now != nil {
		return errors.Join(err, ErrMoved)
	}
	if _, err := os.Stat(d.Path(HoldFile)); err == nil {
		return ErrHeld
	}
	if err := d.Reserve(); err != nil {
		return err
	}
	return d.Write(File, j)
}

// End closes an activation that has come to one of the given steps.
func (d Directory) End(at ...Step) error {
	unlock, err := d.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := d.Journal()
	if err != nil || j == nil {
		return err
	}
	if !slices.Contains(at, j.Step) {
		return fmt.Errorf("%w: it is %s", ErrMoved, j.Step)
	}
	return d.Remove(File)
}
