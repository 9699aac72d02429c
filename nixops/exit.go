package nixops

import (
	"fmt"
	"strings"
)

// Exit is how a switch script ended. Codes: nixpkgs
// pkgs/by-name/sw/switch-to-configuration-ng.
type Exit struct {
	Code    int     // exit status; 128+n for a signal
	Signal  string  // name of the signal that killed it, "" if none
	Changed Changed // what the run did; After fills it in
	locked  bool    // the script said that another run has the lock
}

// Changed says what a run of a switch script did to the running system. The codes alone
// do not: the script also ends with the number of whatever error it met.
type Changed string

const (
	ChangedUnknown Changed = ""      // nobody looked
	ChangedNothing Changed = "kept"  // current-system is what it was
	ChangedSystem  Changed = "moved" // current-system is another
)

// lockWords are what switch-to-configuration says when another run has the lock.
const lockWords = "Could not acquire lock"

// After is the exit read by the closures that ran before and after the run, and by what
// the script said. output may be empty where nothing is known of it.
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
	MeaningLocked     Meaning = "locked"            // 11, and the script says so: try again
	MeaningReboot     Meaning = "reboot-needed"     // 100: the init interface changed
	// 101, 128+n of a signal that it passed on, and any other in its middle
	MeaningDied     Meaning = "script-died"
	MeaningNotBegun Meaning = "not-begun" // the number of an error, and nothing was changed
	MeaningKilled   Meaning = "killed"    // by a signal
	MeaningUnknown  Meaning = "unknown"
)

// OK says that the script reported success.
func (e Exit) OK() bool { return e.Code == 0 && e.Signal == "" }

// Meaning tells the exits apart, by the code and by what the run changed.
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

// String is one clause for people.
func (e Exit) String() string {
	if e.Signal != "" {
		return fmt.Sprintf("killed by %s", e.Signal)
	}
	return fmt.Sprintf("exit %d: %s", e.Code, meanings[e.Meaning()])
}
