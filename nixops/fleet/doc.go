// Package fleet is the declared fleet: what hosts, channels and policies there
// are, which closure each host should run, and the documents that say so under
// signature. It is pure: no I/O, no clock; a release directory comes as an
// fs.FS and the time as an argument.
//
// It promises the bytes of artifact schema v1: a manifest is re-derived from
// the fleet document and must come out the same everywhere. It refuses a
// release whose parts do not belong together.
package fleet
