// Package verify decides what an agent believes of its control plane: heads, manifests and
// targets, by the trust file and by the mark that never goes back.
//
// A Target can be made here only, so that every Target is a closure that a trusted
// release key signed for this host and this wave, fresh by the signed window.
package verify
