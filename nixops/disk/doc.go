// Package disk writes files that survive a power cut and reads files that others
// may have put there.
//
// It promises that a replaced file is the old one or the new one, never half of
// it, and that it lasts once the function has returned; that a read neither blocks
// nor grows without a bound, whatever lies at the path; and that a lock ends with
// its holder.
package disk
