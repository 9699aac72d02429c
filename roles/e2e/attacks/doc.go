// Package attacks plays attackers against the real control plane and real agents in one process, in virtual time: a
// forge, a control plane, a host, an operator, a thief of tokens and a stranger, each with what it would hold. Every
// attack has a name, is refused with an error that says so, is counted, and leaves an honest system that goes on by
// itself. docs/threat-model.md has the table of them.
//
// Each attack names the check that stops it. TestMutants builds the suite once more with a way to leave out each of
// these checks, and the attack must then succeed: an attack that nothing in particular stops would prove nothing.
//
// It is made of tests alone.
package attacks
