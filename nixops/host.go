// Package nixops runs Nix on one host and in CI: it realises a signed closure, switches to it, restores the closure
// before it, and reads what runs.
//
// It promises that it never takes a path for valid because the path exists, that a switch and its output do not
// depend on the caller's life, and that it restores a system by its recorded store path and never as "one generation
// back". It makes no decisions: the agent decides what is done, and in which order.
//
// A closure's name is the base name of its store path, as in every artifact (`<32 nixbase32>-<name>`).
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
	// ErrUnreachable means that no substituter answered. The caller may try again.
	ErrUnreachable = errors.New("no substituter could be reached")
	// ErrTruncated means that a compressed download ended too early. The caller may try again.
	ErrTruncated = errors.New("the download was cut off")
	// ErrNotFound means that the substituters answered and that none of them has the path.
	ErrNotFound = errors.New("no substituter has the path")
	// ErrNoSpace means that the store, /boot or the state directory is full.
	ErrNoSpace = errors.New("no space left")
	// ErrReadOnly means that a boot partition cannot be written. The caller may try again.
	ErrReadOnly = errors.New("the file system is mounted read-only")
	// ErrLockHeld means that another switch holds the lock. The caller may try again; the release has not failed.
	ErrLockHeld = errors.New("another switch is running")
	// ErrNotClosure means that the path is not a valid system closure in this host's store, or that the name is
	// not the name of a store path.
	ErrNotClosure = errors.New("not a valid system closure")
	// ErrMismatch means that Nix gave another path than the caller asked for.
	ErrMismatch = errors.New("nix gave another path than it was asked for")
	// ErrRepaired means that contents of the closure were damaged, for example because power was lost before they
	// were on the disk, and that they have been fetched again.
	ErrRepaired = errors.New("damaged store paths were fetched again")
	// ErrUnitExists means that a unit of that name already runs.
	ErrUnitExists = errors.New("unit is running already")
	// ErrUnsupported means that this kind of host cannot do what the caller asked for.
	ErrUnsupported = errors.New("not supported on this host")
	// ErrNoCollector means that nothing on this host gathers compliance evidence.
	ErrNoCollector = errors.New("the host has no " + CollectorUnit)
	// ErrCalendar means that the text is not a calendar expression of systemd.time(7).
	ErrCalendar = errors.New("not an OnCalendar expression")
)

// A Host is one machine as its agent sees it. NewHost returns the machine that the process runs on; sim.New returns a
// simulated machine. A Host is safe for concurrent use. Its methods return closures as base names; "" means that
// there is no closure.
type Host interface {
	// CurrentSystem is the closure behind /run/current-system. It may be a
	// specialisation of the closure that was activated.
	CurrentSystem(ctx context.Context) (string, error)
	// BootedSystem is the closure behind /run/booted-system.
	BootedSystem(ctx context.Context) (string, error)
	// Profile is the closure of the system profile.
	Profile(ctx context.Context) (string, error)
	// StartedBy is the closure that the kernel's command line names: the one that the boot loader started. It is ""
	// if that is not known. Nothing else proves what was booted: a variable for one boot is gone before the kernel
	// starts.
	StartedBy(ctx context.Context) (string, error)
	// HasBootEntry says whether the boot loader has an entry that starts the closure. It returns an error if that
	// cannot be known.
	HasBootEntry(ctx context.Context, closure string) (bool, error)
	// BootDefault is the closure that the boot loader would start by itself. It is "" if that is not known, which is
	// never an error and proves nothing.
	BootDefault(ctx context.Context) (string, error)
	// NextBoot is BootDefault with all that is known about the next boot. It also asks bootctl, which may take as long
	// as it takes to mount an ESP.
	NextBoot(ctx context.Context) (NextBoot, error)
	// ThisBoot says whether the boot is over, and whether the boot loader has been told that it went well.
	ThisBoot(ctx context.Context) (ThisBoot, error)
	// BootID changes with every boot of the kernel.
	BootID(ctx context.Context) (string, error)
	// SinceBoot is the time since this boot began, including the time that the machine slept. It does not depend
	// on the wall clock. A deadline does not count the time that the machine sleeps.
	SinceBoot(ctx context.Context) (time.Duration, error)

	// Realise fetches the closure into the store from the pinned substituters. Before it fetches, it makes a
	// garbage collector root with the closure's name, which stays. progress, if not nil, gets one line of text at
	// a time. The errors are ErrUnsigned, ErrUnreachable, ErrNotFound, ErrNoSpace, ErrMismatch and ErrNotClosure.
	// With Verified it also compares the contents of every path of the closure with what was signed, and fetches
	// damaged paths again; it returns ErrRepaired if there were any and all is well now.
	Realise(ctx context.Context, closure string, progress func(string), how ...Fetch) error
	// AddRoot makes a garbage collector root of that name for a closure. It replaces an older root of that name.
	AddRoot(ctx context.Context, name, closure string) error
	// RemoveRoot removes a root. A root that does not exist is not an error.
	RemoveRoot(ctx context.Context, name string) error
	// Roots returns the roots that this package made, as name -> closure.
	Roots(ctx context.Context) (map[string]string, error)

	// Inspect reads what a valid closure contains. It returns ErrNotClosure if the path is not valid in the
	// store, even if something exists there.
	Inspect(ctx context.Context, closure string) (Closure, error)
	// SupportsCheck says whether the closure's switch script knows `check`.
	SupportsCheck(ctx context.Context, closure string) (bool, error)

	// Switch runs the closure's own switch script in a unit of its own and waits for it. The switch goes on when
	// ctx ends or the caller dies; SwitchState finds it again. Switch returns ErrLockHeld if another switch holds
	// the lock before the start, or if the script says so. The Exit says what the run changed, see Exit.After.
	// The error says whether the script ran; the Exit says whether it succeeded.
	Switch(ctx context.Context, r SwitchRequest) (Exit, error)
	// SwitchState returns the state of a unit that Switch or a deadline started. A process that ended since the
	// last boot may have started it.
	SwitchState(ctx context.Context, unit string) (UnitState, error)
	// UnitOutput returns the end of what a unit wrote: at most MaxOutput bytes, with U+FFFD for bytes that are not
	// UTF-8.
	UnitOutput(ctx context.Context, unit string) (string, error)
	// StopUnit stops a unit and all its processes. A unit that does not run is not an error.
	StopUnit(ctx context.Context, unit string) error

	// SetProfile makes the system profile lead to a closure. It does nothing if the profile already does.
	SetProfile(ctx context.Context, closure string) error
	// RestoreCurrent makes /run/current-system lead to a recorded closure, atomically.
	RestoreCurrent(ctx context.Context, closure string) error
	// ClearSwitchLists removes the lists that earlier runs left in /run/nixos for later ones: those of a killed
	// switch, which would start the bad generation's units, and those of activation scripts, which can make every
	// later switch fail halfway. Switch removes them before each run that changes units, but keeps the lists of a
	// killed switch when it continues that switch.
	ClearSwitchLists(ctx context.Context) error
	// LockHeld says whether a switch holds the switch lock. Nobody deletes the lock file.
	LockHeld(ctx context.Context) (bool, error)

	// Units describes the machine's units, sorted by name.
	Units(ctx context.Context) ([]Unit, error)
	// StartAgain starts units that ran before the switch and do not run now, if the running closure declares them
	// and nothing else starts them. It returns the units that do not run after half a minute.
	StartAgain(ctx context.Context, ran []string) (down []string, err error)
	// ActiveState returns systemd's word for the state of a unit, whose name has its suffix: "active", "inactive",
	// "activating", "failed" and so on, or "not-found" if the unit does not exist.
	ActiveState(ctx context.Context, unit string) (string, error)

	// CollectEvidence runs the host's collector of compliance evidence, for at most two minutes, and reads what
	// the collector wrote. It returns ErrNoCollector if the host has no collector.
	CollectEvidence(ctx context.Context) (Evidence, error)

	// ArmDeadline makes the machine itself run the command after the given time, in a unit of its own, even if
	// the caller no longer runs then. This call fixes the moment in monotonic time: neither a reload or
	// re-execution of the init nor a step of the clock moves it. If the machine has an init, the init repeats a
	// command that fails or is killed, until the next boot.
	ArmDeadline(ctx context.Context, d Deadline) error
	// DeadlineNote returns the note of a deadline that was armed since the last boot and that nobody has disarmed,
	// whether its time has come or not. It is nil if there is none. An empty name stands for the note that was
	// written last.
	DeadlineNote(ctx context.Context, unit string) ([]byte, error)
	// DisarmDeadline cancels a deadline. It does not stop a command that already runs. A deadline that is not
	// armed is not an error.
	DisarmDeadline(ctx context.Context, unit string) error
	// DeadlineArmed says whether the deadline is still to come.
	DeadlineArmed(ctx context.Context, unit string) (bool, error)

	// CanBootOnce says whether the boot loader can start an entry once and then return to its default by itself,
	// as systemd-boot can.
	CanBootOnce(ctx context.Context) (bool, error)
	// SetStaged keeps a closure in a system profile of its own, for which the next `boot` of any closure makes an
	// entry. "" removes the profile.
	SetStaged(ctx context.Context, closure string) error
	// SetBootOnce makes the next boot, and only that one, start the closure; "" cancels that. It returns
	// ErrNotFound if the boot loader has no entry for the closure, or if that entry's kernel or initrd is not on its
	// partition.
	SetBootOnce(ctx context.Context, closure string) error
	// BootOnce is the closure that SetBootOnce chose, until the boot loader has started it.
	BootOnce(ctx context.Context) (string, error)

	// NextElapse returns the first time after the given time that fits an OnCalendar expression (systemd.time(7),
	// in the host's time zone), or the zero time if there is none. It returns ErrCalendar if the expression is
	// not valid.
	NextElapse(ctx context.Context, calendar string, after time.Time) (time.Time, error)

	// Space returns the free space of the store and of the boot partitions, and what these lack for the kernel and the
	// initrd of a closure in the store ("" for none).
	Space(ctx context.Context, closure string) (Space, error)
	// Reboot reboots the machine.
	Reboot(ctx context.Context) error
}

// Closure describes what a system closure contains. Paths are resolved; what the closure does not have is "" or nil.
type Closure struct {
	Name            string    // base name of its store path
	HasSwitch       bool      // bin/switch-to-configuration (or the platform's own script) can be executed
	Specialisations []string  // base names of the closures of its specialisations, sorted
	AgentPath       string    // file that sw/bin/nixfleet-agent leads to, as this machine would execute it
	TrustJSON       []byte    // etc/nixfleet/agent/trust.json
	Kernel          string    // resolved store path
	Initrd          string    // resolved store path
	KernelModules   string    // resolved store path
	KernelParams    string    // content of kernel-params
	SystemdPath     string    // resolved store path
	DBus            string    // implementation of dbus.service: "dbus" or "dbus-broker"
	SwitchInhibitor string    // content of switch-inhibitors; see Inhibitors
	Version         string    // content of nixos-version
	SourceDate      time.Time // day of the nixpkgs source in Version; zero if Version has no day
}

// Fetch is a way of fetching a closure.
type Fetch int

// Verified also looks at the contents of what the store has already.
const Verified Fetch = 1

// NeedsReboot returns the parts in which the closure differs from the booted one and which take effect only after a
// reboot, although a live switch is possible. The first three are those that NixOS compares (nixpkgs,
// nixos/modules/tasks/auto-upgrade.nix); a change of the parameters needs a reboot as well.
func (c Closure) NeedsReboot(booted Closure) []string {
	var parts []string
	for _, p := range []struct {
		name     string
		is, want string
	}{
		{"kernel", booted.Kernel, c.Kernel},
		{"initrd", booted.Initrd, c.Initrd},
		{"kernel-modules", booted.KernelModules, c.KernelModules},
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

// The actions that Switch knows.
const (
	ActionTest   Action = "test"   // activate the closure now and leave the boot default
	ActionBoot   Action = "boot"   // make the closure the boot default and activate nothing
	ActionSwitch Action = "switch" // activate the closure and make it the boot default
	ActionCheck  Action = "check"  // run only the pre-switch checks

	ActionDryActivate Action = "dry-activate" // say what `test` would do, see Preview
)

// Check returns an error if the action is not one of the constants.
func (a Action) Check() error {
	switch a {
	case ActionTest, ActionBoot, ActionSwitch, ActionCheck, ActionDryActivate:
		return nil
	}
	return fmt.Errorf("action %q is not one of %s, %s, %s, %s and %s", a, ActionTest, ActionBoot, ActionSwitch,
		ActionCheck, ActionDryActivate)
}

// SwitchRequest describes one run of a closure's own switch script.
type SwitchRequest struct {
	Closure string
	Action  Action
	Unit    string   // name of the unit without suffix; new for each attempt
	Env     []string // NAME=value, added to the unit's environment

	// Continues says that an earlier run of the same closure died. The new run starts the units that the earlier
	// run had stopped and named in its lists.
	Continues bool

	// Here lets the script run in the unit of the caller if the machine can make no unit for it, for example
	// because /run is full. The caller is not a unit that the script may restart.
	Here bool
}

// UnitPhase says whether a unit runs.
type UnitPhase string

// The phases of a unit.
const (
	UnitRunning  UnitPhase = "running"
	UnitFinished UnitPhase = "finished"
	UnitUnknown  UnitPhase = "unknown" // not started since the last boot
)

// UnitState is the state of a unit. Exit is valid only if the unit has finished.
type UnitState struct {
	Phase UnitPhase
	Exit  Exit
}

// MaxOutput bounds, in bytes, how much of a program's output UnitOutput and an error contain.
const MaxOutput = 4 << 10

// Space is how many bytes unprivileged writers can still write.
type Space struct {
	StoreFree uint64
	BootFree  uint64

	BootLacks   uint64 // bytes that the closure's kernel and initrd need and that are not there
	BootLacking string // directory of the boot partition that lacks most

	BootReadOnly string // directory of a boot partition that cannot be written; "" if there is none
}
