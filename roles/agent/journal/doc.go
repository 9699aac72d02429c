// Package journal keeps what an agent must know after a crash, a power cut or its own
// replacement: the state directory with its documents, and the journal of the activation
// that is under way.
//
// Every document is replaced as a whole and flushed before a write returns, bears a version
// and a checksum, and is not believed when it is damaged or when another user could
// write it. A step of an activation is written before what it names is begun. The agent's commit
// and an undo exclude each other by a lock and a compare-and-set on the step.
//
// Nothing here needs the network, the control plane or a running agent.
package journal
