package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// journalPoll is how often a held journal lock is asked for.
const journalPoll = 50 * time.Millisecond

const (
	journalFile = "journal.json"
	lockFile    = "journal.lock"
	agentLock   = "agent.lock" // held by the running agent
)

// step is where in an activation the host is. Each is written before what it
// names is begun.
type step string

// The steps in order. An activation ends as stepDone, stepUndone or stepStaged.
const (
	stepFetching   step = "fetching"   // nothing has changed yet
	stepArming     step = "arming"     // paths are recorded; the deadline is being armed
	stepSwitching  step = "switching"  // the target's own switch script runs in its unit
	stepChecking   step = "checking"   // the new generation must prove itself
	stepProven     step = "proven"     // local gate passed, one check-in answered
	stepCommitting step = "committing" // profile and boot default are being set
	stepCommitted  step = "committed"  // the new generation is the boot default; to be confirmed
	stepStaging    step = "staging"    // is being made the boot default without a switch
	stepStaged     step = "staged"     // waits for a reboot
	stepUndoing    step = "undoing"    // the recorded paths are being restored
	stepUndone     step = "undone"     // they are; to be reported
)

// revertible steps are those that a deadline, a guard or the agent may undo.
var revertible = []step{stepFetching, stepArming, stepSwitching, stepChecking, stepProven, stepCommitting, stepUndoing}

// recorded is what the host had before, by path and not by count of generations.
type recorded struct {
	Current     string `json:"current" shape:"R"` // may be a specialisation
	Profile     string `json:"profile" shape:"R"`
	BootDefault string `json:"bootDefault" shape:"D"` // empty where no loader is known
}

// journal is one activation on disk.
type journal struct {
	Step         step              `json:"step" shape:"R"`
	Closure      string            `json:"closure" shape:"R"`
	RolloutID    string            `json:"rolloutId" shape:"D"`
	Intent       string            `json:"intent" shape:"D"`
	Channel      string            `json:"channel" shape:"D"`
	ChannelRef   string            `json:"channelRef" shape:"D"` // what confirms and reports name
	Wave         uint32            `json:"wave" shape:"D"`
	Attempt      uint32            `json:"attempt" shape:"D"`
	Before       recorded          `json:"before" shape:"R"`
	BootID       string            `json:"bootId" shape:"R"` // at the start
	StartedAt    pki.Timestamp     `json:"startedAt" shape:"R"`
	Since        pki.Timestamp     `json:"since" shape:"R"` // the step's
	WindowSecs   uint32            `json:"windowSecs" shape:"R"`
	ArmedAtMs    int64             `json:"armedAtMs" shape:"D"` // the deadline was, since the boot, time asleep included
	Units        journalUnits      `json:"units" shape:"R"`
	FailedBefore []string          `json:"failedBefore" shape:"D"`
	Restarts     map[string]uint64 `json:"restarts" shape:"D"`
	Component    string            `json:"component" shape:"D"` // staged: what waits for the boot
	BootsOnce    bool              `json:"bootsOnce" shape:"D"` // staged: the loader keeps its default and falls back to it
	Reboots      bool              `json:"reboots" shape:"D"`   // staged: the host's policy lets the agent reboot it

	// Compliance is the mode of the compliance gate for this activation.
	Compliance string `json:"compliance" shape:"D"`

	// GatePassed: the new generation is healthy and only lacks an answered check-in.
	GatePassed bool `json:"gatePassed" shape:"D"`

	// Why it is undone, whether the release is to blame, and whether it is a confirmed
	// generation that the control plane recalls.
	Reason   string `json:"reason" shape:"D"`
	Blame    bool   `json:"blame" shape:"D"`
	Recalled bool   `json:"recalled" shape:"D"`
	ExitCode *int32 `json:"exitCode" shape:"N"`
	Output   string `json:"output" shape:"D"`
}

// journalUnits are the names of the units of this attempt.
type journalUnits struct {
	Switch   string `json:"switch" shape:"R"`
	Boot     string `json:"boot" shape:"R"`
	Undo     string `json:"undo" shape:"R"`
	Deadline string `json:"deadline" shape:"R"`
}

func newUnits(tag string) journalUnits {
	return journalUnits{
		Switch: "nixfleet-switch-" + tag, Boot: "nixfleet-boot-" + tag,
		Undo: "nixfleet-undo-" + tag, Deadline: "nixfleet-deadline-" + tag,
	}
}

// errMoved: another process has taken the journal to another step.
var errMoved = errors.New("the activation was taken on by somebody else")

// lock excludes the agent's commit and an undo by the deadline or the guard
// from each other. It is freed by the kernel when its holder dies.
func (d directory) lock() (unlock func(), err error) {
	f, err := os.OpenFile(d.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock journal: %w", err)
	}
	// Asked again and again rather than waited for: a wait in the kernel ends with
	// nothing but the lock.
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, errors.Join(fmt.Errorf("lock journal: %w", err), f.Close())
		}
		time.Sleep(journalPoll)
	}
}

// only keeps a second agent away, which would take on the activation of the first.
func (d directory) only() (leave func(), err error) {
	f, err := os.OpenFile(d.path(agentLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &command.Error{Err: fmt.Errorf("lock state directory: another agent runs on %s: %w", d, err), Hint: "systemctl status nixfleet-agent"}
	}
	return func() { f.Close() }, nil
}

// journal reads the activation under way; nil when there is none.
func (d directory) journal() (*journal, error) {
	var j journal
	err := d.read(journalFile, &j)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &j, nil
}

// advance moves the journal from one step to the next: a compare-and-set under
// the lock. change may fill in more before it is written.
func (d directory) advance(now time.Time, from []step, to step, change func(*journal)) (*journal, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return d.advanceLocked(now, from, to, change)
}

func (d directory) advanceLocked(now time.Time, from []step, to step, change func(*journal)) (*journal, error) {
	j, err := d.journal()
	if err != nil {
		return nil, err
	}
	if j == nil {
		return nil, fmt.Errorf("%w: there is no journal", errMoved)
	}
	if !slices.Contains(from, j.Step) {
		return nil, fmt.Errorf("%w: it is %s", errMoved, j.Step)
	}
	if change != nil {
		change(j)
	}
	j.Step, j.Since = to, pki.At(now.Truncate(time.Millisecond))
	if err := d.write(journalFile, j); err != nil {
		return nil, err
	}
	return j, nil
}

// errHeld: root's word is in force.
var errHeld = errors.New("root holds this host")

// begin opens an activation. One that is under way is errMoved.
func (d directory) begin(j *journal) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if now, err := d.journal(); err != nil || now != nil {
		return errors.Join(err, errMoved)
	}
	if _, err := os.Stat(d.path(holdFile)); err == nil {
		return errHeld
	}
	return d.write(journalFile, j)
}

// end closes an activation that has come to the given step.
func (d directory) end(at ...step) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := d.journal()
	if err != nil || j == nil {
		return err
	}
	if !slices.Contains(at, j.Step) {
		return fmt.Errorf("%w: it is %s", errMoved, j.Step)
	}
	return d.remove(journalFile)
}
