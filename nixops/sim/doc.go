// Package sim is a simulated machine: a nixops.Host without Nix, an init or a boot
// loader, for tests, for the fleet simulator and for the demo.
//
// It promises what the contract tests of package nixops ask of both machines. It keeps
// time by package time, so that it lives in a testing/synctest bubble as well as on a
// wall clock, and starts no process unless a deadline fires without a callback.
package sim
