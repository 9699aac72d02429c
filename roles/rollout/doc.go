// Package rollout decides who is updated when. It is pure: it does no I/O, reads no clock, starts no
// goroutine and rolls no dice. What it is given (signed releases, observations, reports, operator actions and
// the time) determines what it answers, so the tick, the answer to a check-in, explain and plan cannot disagree.
//
// A World is one fleet as the control plane sees it. Each method takes the time, applies what happened, and
// returns a Change: the rows that must be stored, the events that happened and the hosts whose held requests
// should be answered. Rules live in one ordered table (gates.go); each blocks or lets pass with a Reason. A
// World is not safe for concurrent use.
//
// Cost follows change: a check-in that changes nothing touches its own host only and returns an empty Change,
// a Tick without due timers looks at the head of one heap.
package rollout
