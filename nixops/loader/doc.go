// Package loader says what a boot loader will start at the next boot, from the files that the loader reads and from
// the EFI variables that it shares with the running system.
//
// It promises that it names a closure only if every loader that may be installed here would start that closure.
// What it cannot read, and what two versions of a loader do differently, is unknown and has a reason in words. It
// only reads: it changes nothing, asks no program, and never blocks on a file that is not a regular one.
//
// The rules of systemd-boot were measured with the loaders of systemd 252, 257 and 262; TestBoots lists the boots.
package loader
