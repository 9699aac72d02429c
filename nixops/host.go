// Package nixops does what is done to one host, or by CI, with Nix: realising a
// signed closure, switching to it, restoring the one before, reading what runs.
//
// It promises that a path is never taken for valid because it exists, that a
// switch outlives its caller, that its output never depends on its
// caller, and that everything is restored by recorded store path and never
// "one generation back". It decides nothing: order and policy belong to the agent.
//
// Closures are named by the base name of their store path, as in every artifact
// (`<32 nixbase32>-<name>`).
package nixops

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The errors that callers tell apart; everything else is a failure of the host.
var (
	// ErrUnsigned means that what the cache holds for the closure is not what a pinned key
	// signed: no signature, a foreign one, or content that differs from it.
	ErrUnsigned = errors.New("not signed by a trusted cache key")
	// ErrUnreachable means that no substituter answered. Worth trying again.
	ErrUnreachable = errors.New("no substituter could be reached")
	// ErrNotFound means that the substituters answered and none has the path.
	ErrNotFound = errors.New("in no substituter")
	// ErrNoSpace means that the store, /boot or the state directory is full.
	ErrNoSpace = errors.New("no space left")
	// ErrLockHeld means that another switch holds the lock: try again. It is never a failed release.
	ErrLockHeld = errors.New("another switch is running")
	// ErrNotClosure: the path is not a valid system closure of this host's store, or
	// the name is none of a store path.
	ErrNotClosure = errors.New("not a valid system closure")
	// ErrMismatch means that the realised path is not the one that was asked for.
	ErrMismatch = errors.New("realised another path")
	// ErrUnitExists means that a unit of that name is running already.
	ErrUnitExists = errors.New("unit is running already")
	// ErrUnsupported means that this kind of host cannot do it.
	ErrUnsupported = errors.New("not supported on this host")
	// ErrNoCollector means that nothing on this host gathers compliance evidence.
	ErrNoCollector = errors.New("the host has no " + CollectorUnit)
	// ErrCalendar means that the expression is not one of systemd.time(7).
	ErrCalendar = errors.New("not an OnCalendar expression")
)

// A Host is one machine as its agent sees it. Implementations: the machine the
// process runs on (NewHost) and a simulated one (NewSim). Safe for concurrent use.
// Returned closures are base names; "" means that there is none.
type Host interface {
	// CurrentSystem is the closure behind /run/current-system. It may be a
	// specialisation of the closure that was activated.
	CurrentSystem(ctx context.Context) (string, error)
	// BootedSystem is the closure behind /run/booted-system.
	BootedSystem(ctx context.Context) (string, error)
	// Profile is the closure of the system profile.
	Profile(ctx context.Context) (string, error)
	// HasBootEntry says whether a file of a known boot loader starts the closure. It is
	// false as well where no known loader is installed.
	HasBootEntry(ctx context.Context, closure string) (bool, error)
	// BootDefault is the closure that the boot loader would start by itself, ""
	// where no known loader (systemd-boot, GRUB, extlinux) is installed.
	BootDefault(ctx context.Context) (string, error)
	// BootID changes with every boot of the kernel.
	BootID(ctx context.Context) (string, error)
	// SinceBoot is how long ago this boot began, the time asleep included, whatever
	// happened to the clock. A deadline does not count the time asleep.
	SinceBoot(ctx context.Context) (time.Duration, error)

	// Realise brings the closure into the store from the pinned substituters. A
	// garbage collector root named after the closure is in place before anything is
	// fetched and stays. progress, if not nil, gets one line of text at a time.
	// Errors: ErrUnsigned, ErrUnreachable, ErrNotFound, ErrNoSpace, ErrMismatch, ErrNotClosure.
	Realise(ctx context.Context, closure string, progress func(string)) error
	// AddRoot protects a closure under a name, replacing what had the name.
	AddRoot(ctx context.Context, name, closure string) error
	// RemoveRoot drops a root; one that is not there is not an error.
	RemoveRoot(ctx context.Context, name string) error
	// Roots returns name -> closure of the roots made here.
	Roots(ctx context.Context) (map[string]string, error)

	// Inspect reads what a valid closure contains. ErrNotClosure when the path is
	// not valid in the store, whether or not something lies there.
	Inspect(ctx context.Context, closure string) (Closure, error)
	// SupportsCheck says whether the closure's switch script knows `check`.
	SupportsCheck(ctx context.Context, closure string) (bool, error)

	// Switch runs the closure's own switch script in a unit of its own and waits for it. The
	// switch goes on when ctx ends or the caller dies; SwitchState finds it again.
	// A held lock is ErrLockHeld, before the start as well as by what the script says.
	// The exit is read by what the run changed, as Exit.After does.
	// The error says whether the script ran; the Exit whether it worked.
	Switch(ctx context.Context, r SwitchRequest) (Exit, error)
	// SwitchState tells about a unit started by Switch or by a deadline, also by an
	// earlier process since the last boot.
	SwitchState(ctx context.Context, unit string) (UnitState, error)
	// UnitOutput is the end of what a unit wrote, cut to MaxOutput bytes, with U+FFFD for
	// what is not UTF-8.
	UnitOutput(ctx context.Context, unit string) (string, error)
	// StopUnit ends a unit and all its processes; one that does not run is not an error.
	StopUnit(ctx context.Context, unit string) error

	// SetProfile points the system profile at a closure; repeated it does nothing.
	SetProfile(ctx context.Context, closure string) error
	// RestoreCurrent points /run/current-system at a recorded closure, atomically.
	RestoreCurrent(ctx context.Context, closure string) error
	// ClearSwitchLists removes what earlier runs left in /run/nixos for later ones: the
	// lists of a killed switch, which would start the bad generation's units, and those
	// of activation scripts, which can end each later switch in its middle. Switch does so
	// before each run that changes units, and keeps the former in one that continues.
	ClearSwitchLists(ctx context.Context) error
	// LockHeld says whether a switch holds the switch lock. The file is never deleted.
	LockHeld(ctx context.Context) (bool, error)

	// Units describes the machine's units, sorted by name.
	Units(ctx context.Context) ([]Unit, error)
	// StartAgain starts those of the units, which ran before, that do not run now although
	// the running closure brings them and nothing else starts them. It names those that do
	// not come up within half a minute.
	StartAgain(ctx context.Context, ran []string) (down []string, err error)
	// ActiveState is systemd's word for a unit, given with its suffix: "active",
	// "inactive", "activating", "failed" and so on; "not-found" for one that does not exist.
	ActiveState(ctx context.Context, unit string) (string, error)

	// CollectEvidence runs the host's collector of compliance evidence, for two
	// minutes at most, and reads what it wrote. ErrNoCollector: the host has none.
	CollectEvidence(ctx context.Context) (Evidence, error)

	// ArmDeadline has the machine itself run the command after the time has passed,
	// in a unit of its own, whether the caller then lives or not. The moment is fixed by
	// this call, in monotonic time: no reload or re-execution of the init and no step of
	// the clock moves it. Where there is an init, it runs a command that fails or is killed
	// again, until the next boot.
	ArmDeadline(ctx context.Context, d Deadline) error
	// DisarmDeadline takes it back. It does not stop a command that already runs,
	// and a deadline that is not armed is not an error.
	DisarmDeadline(ctx context.Context, unit string) error
	// DeadlineArmed says whether the deadline is still to come.
	DeadlineArmed(ctx context.Context, unit string) (bool, error)

	// CanBootOnce says whether the boot loader can start an entry once and return to
	// its default by itself, as systemd-boot can.
	CanBootOnce(ctx context.Context) (bool, error)
	// SetStaged keeps a closure in a system profile of its own, from which the next
	// `boot` of any closure makes an entry; "" drops the profile.
	SetStaged(ctx context.Context, closure string) error
	// SetBootOnce has the next boot, and only that one, start the closure; "" takes it
	// back. ErrNotFound when the loader has no entry for it.
	SetBootOnce(ctx context.Context, closure string) error
	// BootOnce is the closure that SetBootOnce chose, until it was started.
	BootOnce(ctx context.Context) (string, error)

	// NextElapse is when an OnCalendar expression (systemd.time(7), in the host's time
	// zone) comes true for the first time after the given one; zero if never. ErrCalendar.
	NextElapse(ctx context.Context, calendar string, after time.Time) (time.Time, error)

	Space(ctx context.Context) (Space, error)
	Reboot(ctx context.Context) error
}

// Closure is what a system closure says about itself. Paths are resolved; what
// the closure has not is "" or nil.
type Closure struct {
	Name            string    // base name of its store path
	HasSwitch       bool      // bin/switch-to-configuration (or the platform's own) can be run
	Specialisations []string  // base names of the closures of its specialisations, sorted
	AgentPath       string    // file behind sw/bin/nixfleet-agent, as this machine would execute it
	TrustJSON       []byte    // etc/nixfleet/agent/trust.json
	Kernel          string    // resolved store path
	Initrd          string    // resolved store path
	KernelParams    string    // content of kernel-params
	SystemdPath     string    // resolved store path
	DBus            string    // implementation behind dbus.service: "dbus" or "dbus-broker"
	SwitchInhibitor string    // content of switch-inhibitors; see Inhibitors
	Version         string    // content of nixos-version
	SourceDate      time.Time // day of the nixpkgs source in Version, zero if it names none
}

// NeedsReboot names what of the closure takes effect only by a reboot although it
// can be switched live, compared with the booted one.
func (c Closure) NeedsReboot(booted Closure) []string {
	var parts []string
	for _, p := range []struct {
		name     string
		is, want string
	}{
		{"kernel", booted.Kernel, c.Kernel},
		{"initrd", booted.Initrd, c.Initrd},
		{"kernel-params", booted.KernelParams, c.KernelParams},
	} {
		if p.is != p.want {
			parts = append(parts, p.name)
		}
	}
	return parts
}

// Action is an argument of switch-to-configuration.
type Action string

const (
	ActionTest   Action = "test"   // activate now, leave the boot default
	ActionBoot   Action = "boot"   // make it the boot default, activate nothing
	ActionSwitch Action = "switch" // both
	ActionCheck  Action = "check"  // pre-switch checks only
)

// Check says whether switch-to-configuration is asked for something else.
func (a Action) Check() error {
	switch a {
	case ActionTest, ActionBoot, ActionSwitch, ActionCheck:
		return nil
	}
	return fmt.Errorf("action %q: only %s, %s, %s and %s", a, ActionTest, ActionBoot, ActionSwitch, ActionCheck)
}

// SwitchRequest asks for one run of a closure's own switch script.
type SwitchRequest struct {
	Closure string
	Action  Action
	Unit    string   // name of the unit without suffix; new for each attempt
	Env     []string // NAME=value, added to the unit's environment

	// Continues says that an earlier run of the same closure died: what it had stopped,
	// which its lists name, is started again.
	Continues bool
}

// UnitPhase says where a unit is.
type UnitPhase string

const (
	UnitRunning  UnitPhase = "running"
	UnitFinished UnitPhase = "finished"
	UnitUnknown  UnitPhase = "unknown" // never started since the last boot
)

// UnitState is what is known about a unit. Exit counts when it is finished.
type UnitState struct {
	Phase UnitPhase
	Exit  Exit
}

// MaxOutput bounds in bytes what UnitOutput and error messages carry.
const MaxOutput = 4 << 10

// Space is what is left, in bytes, for unprivileged writers.
type Space struct {
	StoreFree uint64
	BootFree  uint64
}
