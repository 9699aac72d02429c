// Package cp is the control plane: it takes signed releases from a source,
// tells each agent its target or why it waits, and keeps the view of the fleet.
//
// It promises to serve only verified snapshots, never an older one; that
// identity comes from the TLS certificate alone and is checked on every
// request; that an answer which changed something is given after the change is
// on disk. It signs nothing that a host runs.
package cp
