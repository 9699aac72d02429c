// Package undo takes an unproven activation back to the very paths that its journal recorded.
//
// It is what must work when all else is broken: it needs the state directory and the host,
// and neither the network, nor the control plane, nor a running agent. The agent uses it,
// the deadline runs it in a process of its own, and the guard runs it at boot. An undo is
// idempotent, and judged by the restored paths rather than by what a script returned.
package undo
