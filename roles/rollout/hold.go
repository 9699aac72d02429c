package rollout

import (
	"time"

	"nixfleet/pki"
)

// hold is what keeps a subject; nil keeps nothing. It is of the moment at which it was asked for: its sentence reads
// the World as it is then. Nothing may change one.
type hold struct {
	code string
	gate string // that speaks, for people
	// opens is when the gate lets the subject pass by itself: the subject is looked at again then. It is zero when
	// something has to happen first, which then wakes the hosts that wait for it.
	opens moment
	// until is when the gate lets subjects pass by itself, where the rollout as a whole is looked at then.
	until moment
	// about is what the sentence is about besides the subject: a budget, a quarantine, another host.
	about any
}

// moment is a time in Unix milliseconds, which is the resolution of everything here.
type moment int64

func momentOf(t time.Time) moment { return moment(t.UnixMilli()) }

// stamp is the moment for the wire.
func (m moment) stamp() *pki.Timestamp {
	at := pki.At(m.time())
	return &at
}

func (m moment) time() time.Time { return time.UnixMilli(int64(m)).UTC() }

// Holds that need no time and no words besides the subject are made once: gates are asked very often. What the soak
// gates say is heard from the gate of convergence.
var (
	heldNotReady         = &hold{code: CodeNotReady, gate: "release"}
	heldNotDeclared      = &hold{code: CodeNotDeclared, gate: "release"}
	heldNoClosure        = &hold{code: CodeNoClosure, gate: "release"}
	heldAwaitingEvidence = &hold{code: CodeAwaitingEvidence, gate: "convergence"}
	heldProbesFailing    = &hold{code: CodeProbesFailing, gate: "convergence"}
	heldProbesNotRun     = &hold{code: CodeProbesNotRun, gate: "convergence"}
	heldPinned           = &hold{code: CodePinned, gate: "convergence"}
	heldConverged        = &hold{code: CodeConverged, gate: "convergence"}
	heldSoaked           = &hold{code: CodeSoaked, gate: "convergence"}
	heldOnTarget         = &hold{code: CodeOnTarget, gate: "convergence"}
	heldTwoMachines      = &hold{code: CodeTwoMachines, gate: "twins"}
	heldFailed           = &hold{code: CodeFailed, gate: "failure"}
	heldReverted         = &hold{code: CodeReverted, gate: "failure"}
	heldTolerated        = &hold{code: CodeTolerated, gate: "failure"}
	heldOldLease         = &hold{code: CodeOldLease, gate: "lease"}
	heldDeferred         = &hold{code: CodeDeferred, gate: "lease"}
	heldConfirmWindow    = &hold{code: CodeConfirmWindow, gate: "lease"}
	heldActivating       = &hold{code: CodeActivating, gate: "lease"}
	heldLease            = &hold{code: CodeLease, gate: "lease"}
	heldHostBusy         = &hold{code: CodeHostBusy, gate: "busy"}
	heldOffline          = &hold{code: CodeOffline, gate: "presence"}
	heldStale            = &hold{code: CodeStale, gate: "freshness"}
	heldCancelled        = &hold{code: CodeCancelled, gate: "operator"}
	heldPaused           = &hold{code: CodePaused, gate: "operator"}
	heldHalted           = &hold{code: CodeHalted, gate: "halt"}
	heldReverting        = &hold{code: CodeReverting, gate: "halt"}
	heldWave             = &hold{code: CodeWave, gate: "wave"}
	heldCompliance       = &hold{code: CodeCompliance, gate: "compliance"}
	heldFetchFailed      = &hold{code: CodeFetchFailed, gate: "fetch"}
	heldHeld             = &hold{code: CodeHeld, gate: "host-hold"}
	heldWaveWorking      = &hold{code: CodeWaveWorking, gate: "wave-soak"}
	heldWaveUnproven     = &hold{code: CodeWaveUnproven, gate: "wave-soak"}
	heldWaveAbsent       = &hold{code: CodeWaveAbsent, gate: "wave-soak"}

	heldOffered = &hold{code: CodeOffered, gate: "dispatch"}
	heldResent  = &hold{code: CodeResent, gate: "lease"}
)
