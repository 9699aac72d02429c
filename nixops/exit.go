package nixops

import (
	"fmt"
	"strings"
)

// Exit says how a switch script ended. The source of the codes is nixpkgs,
// pkgs/by-name/sw/switch-to-configuration-ng.
type Exit struct {
	Code    int     // exit status; 128+n for a signal
	Signal  string  // name of the signal that killed the script; "" if none did
	Changed Changed // what the run changed; After sets it
	locked  bool    // the script said that another run holds the lock; After sets it
}

// Changed says what a run of a switch script did to the running system. The exit code alone does not say so, because
// the script also exits with the number of any error that it meets.
type Changed string

const (
	ChangedUnknown Changed = ""      // nobody compared
	ChangedNothing Changed = "kept"  // current-system is the same closure as before
	ChangedSystem  Changed = "moved" // current-system is another closure
)

// lockWords is what switch-to-configuration says when another run holds the lock.
const lockWords = "Could not acquire lock"

// After returns the exit with what the run changed. before and after are the closures that ran before and after the
// run; output is what the script wrote, or empty if that is not known.
func (e Exit) After(before, after, output string) Exit {
	e.Changed = ChangedNothing
	if before != after {
		e.Changed = ChangedSystem
	}
	e.locked = e.Changed == ChangedNothing && (output == "" || strings.Contains(output, lockWords))
	return e
}

// Meaning is a stable word for an exit.
type Meaning string

const (
	MeaningDone       Meaning = "done"              // 0
	MeaningRefused    Meaning = "refused"           // 1: pre-switch check, switch inhibitor or boot loader
	MeaningActivation Meaning = "activation-failed" // 2: the activation script
	MeaningUnits      Meaning = "units-failed"      // 4: some unit
	MeaningLocked     Meaning = "locked"            // 11, and the script says that the lock is held: try again
	MeaningReboot     Meaning = "reboot-needed"     // 100: the init interface changed
	// MeaningDied is 101, or a code that has no other meaning once the script has changed the system.
	MeaningDied     Meaning = "script-died"
	MeaningNotBegun Meaning = "not-begun" // the number of an error, and the script changed nothing
	MeaningKilled   Meaning = "killed"    // a signal killed the script
	MeaningUnknown  Meaning = "unknown"
)

// OK says whether the script reported success.
func (e Exit) OK() bool { return e.Code == 0 && e.Signal == "" }

// Meaning returns what the exit means, which follows from the code and from what the run changed.
func (e Exit) Meaning() Meaning {
	if e.Signal != "" || e.Code > 128 && e.Code <= 128+64 {
		return MeaningKilled
	}
	switch e.Code {
	case 0:
		return MeaningDone
	case 4:
		return MeaningUnits
	case 100:
		return MeaningReboot
	case 101:
		return MeaningDied
	}
	switch e.Changed {
	case ChangedSystem:
		if e.Code == 2 {
			return MeaningActivation
		}
		return MeaningDied
	case ChangedNothing:
		switch {
		case e.Code == 1:
			return MeaningRefused
		case e.Code == 11 && e.locked:
			return MeaningLocked
		}
		return MeaningNotBegun
	}
	switch e.Code {
	case 1:
		return MeaningRefused
	case 2:
		return MeaningActivation
	case 11:
		return MeaningLocked
	}
	return MeaningUnknown
}

var meanings = map[Meaning]string{
	MeaningDone:       "done",
	MeaningRefused:    "a pre-switch check, a switch inhibitor or the boot loader refused",
	MeaningActivation: "the activation script failed",
	MeaningUnits:      "some unit failed",
	MeaningLocked:     "another switch holds the lock",
	MeaningReboot:     "the init interface changed, a reboot is needed",
	MeaningDied:       "the switch script itself died",
	MeaningNotBegun:   "the switch script met an error and changed nothing",
	MeaningKilled:     "killed by a signal",
	MeaningUnknown:    "an exit code that switch-to-configuration does not use",
}

// String describes the exit for people, in one clause.
func (e Exit) String() string {
	if e.Signal != "" {
		return fmt.Sprintf("killed by %s", e.Signal)
	}
	return fmt.Sprintf("exit %d: %s", e.Code, meanings[e.Meaning()])
}
