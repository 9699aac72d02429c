// Package sim provides a simulated machine: a nixops.Host without Nix, an init or a boot loader. Tests, the fleet
// simulator and the demo use it.
//
// It promises to pass the contract tests of package nixops, as the real machine does. Its only clock is package time,
// so that it works in a testing/synctest bubble as well as by the wall clock. It starts a process only when a deadline
// fires without a callback.
package sim
