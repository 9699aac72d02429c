// Package disk writes files that survive a power cut and reads files that others
// may have put there.
//
// It promises that a replaced file is always the complete old one or the complete new one, and that the new file
// survives a power cut once the function has returned. It promises that a read neither blocks nor reads without a
// bound, whatever is at the path, and that a lock ends with its holder.
package disk
