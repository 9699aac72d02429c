// Package sim runs whole fleets in virtual time: the real control plane and
// real agents in one process, over connections in memory, on simulated
// machines, under faults that all come from one seed. It holds what the system
// promises as invariants that are looked at while it runs.
//
// It is made of tests alone.
package sim
