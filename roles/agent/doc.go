// Package agent keeps one host at the state that the signed fleet declares.
//
// It trusts no peer: it acts only on a head signed by a trusted release key, a
// proof that its own entry is under that head, and closures whose signatures
// Nix checks. It writes every step of an activation ahead to a journal, arms a
// deadline outside of itself before it touches anything, and makes nothing the
// boot default that has not proven itself. What it cannot prove it undoes, to
// the very paths that it recorded.
package agent
