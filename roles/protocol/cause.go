package protocol

import (
	"slices"
	"strings"
)

// Cause says in one word why an activation ended, or why it could not begin. On the wire it is the beginning of a v1
// text, of the form `cause: text`, which With makes and SplitCause reads; nothing else may compare the beginning of
// such a text.
type Cause string

// The causes that our agents name.
const (
	// CauseSwitch means that the switch script failed, or that it left another closure running.
	CauseSwitch Cause = "switch"
	// CauseBoot means that the closure could not be made the boot default, or that another one was booted instead.
	CauseBoot Cause = "boot"
	// CauseHealthGate means that a unit or a probe of the new generation failed.
	CauseHealthGate Cause = "health-gate"
	// CauseCompliance means that a compliance control failed on the new generation.
	CauseCompliance Cause = "compliance"
	// CauseDeadline means that the new generation was not proven within its window.
	CauseDeadline Cause = "deadline"
	// CauseInspect means that the closure lacks what every closure has to bring.
	CauseInspect Cause = "inspect"
	// CauseRecalled means that the control plane asked the host to go back.
	CauseRecalled Cause = "recalled by the control plane"

	// CauseLockHeld means that another switch is running on the host.
	CauseLockHeld Cause = "lock-held"
	// CauseNoSpace means that a file system of the host is full.
	CauseNoSpace Cause = "no-space"
	// CausePreflight means that something on the host is in the way. Power losses are told as this one, which v1 texts
	// require.
	CausePreflight Cause = "preflight"
	// CauseFetch means that the signed documents could not be fetched.
	CauseFetch Cause = "fetch"
	// CauseRealise means that the closure could not be brought into the store.
	CauseRealise Cause = "realise"

	// CauseUnreachable means that no check-in was answered within the window.
	CauseUnreachable Cause = "control-plane-unreachable"
	// CauseConfirmRefused means that the control plane answered the confirm with 410.
	CauseConfirmRefused Cause = "confirm-refused"
	// CauseLeaseExpired means that the activation could not begin within its lease.
	CauseLeaseExpired Cause = "lease-expired"
	// CauseSuperseded means that something newer takes the place of the activation.
	CauseSuperseded Cause = "superseded"
	// CauseOperatorUndo means that root took the activation back.
	CauseOperatorUndo Cause = "operator-undo"
	// CauseThirdClosure means that somebody switched to another closure by hand. The text is that closure.
	CauseThirdClosure Cause = "third-closure"
)

// Blame says what a failure speaks against.
type Blame int

const (
	// BlameRelease means that the closure failed: it is quarantined, and the failure policy acts. The text of a cause
	// that is not in the vocabulary, such as one of a v1 agent, blames the release too: no failure is overlooked
	// because of its wording.
	BlameRelease Blame = iota
	// BlameHost means that the host could not do it: it tries again, with back-off.
	BlameHost
	// BlameNobody means that nothing failed: the activation was given up, and is tried again.
	BlameNobody
)

// causes are all causes, each with whom it blames.
var causes = []struct {
	cause Cause
	blame Blame
}{
	{CauseSwitch, BlameRelease},
	{CauseBoot, BlameRelease},
	{CauseHealthGate, BlameRelease},
	{CauseCompliance, BlameRelease},
	{CauseDeadline, BlameRelease},
	{CauseInspect, BlameRelease},
	{CauseRecalled, BlameRelease},
	{CauseLockHeld, BlameHost},
	{CauseNoSpace, BlameHost},
	{CausePreflight, BlameHost},
	{CauseFetch, BlameHost},
	{CauseRealise, BlameHost},
	{CauseUnreachable, BlameNobody},
	{CauseConfirmRefused, BlameNobody},
	{CauseLeaseExpired, BlameNobody},
	{CauseSuperseded, BlameNobody},
	{CauseOperatorUndo, BlameNobody},
	{CauseThirdClosure, BlameNobody},
}

// Causes are all causes of the vocabulary.
func Causes() []Cause {
	all := make([]Cause, 0, len(causes))
	for _, row := range causes {
		all = append(all, row.cause)
	}
	return all
}

// Blame says what a failure for this cause speaks against.
func (c Cause) Blame() Blame {
	for _, row := range causes {
		if row.cause == c {
			return row.blame
		}
	}
	return BlameRelease
}

// With is the v1 text of the cause with its details. A cause without details is its own text.
func (c Cause) With(text string) string { return string(c) + ": " + text }

// SplitCause reads a v1 text. Without a known cause at its beginning the cause is empty and the text is all of it. A
// text may go on after its cause in another way than ours do (v1 agents write `realise-failed`).
func SplitCause(text string) (c Cause, rest string) {
	known := Causes()
	if word, rest, ok := strings.Cut(text, ": "); ok && slices.Contains(known, Cause(word)) {
		return Cause(word), rest
	}
	for _, cause := range known {
		if rest, ok := strings.CutPrefix(text, string(cause)); ok {
			return cause, strings.TrimPrefix(rest, ": ")
		}
	}
	return "", text
}
