package operator

import "encoding/base64"

// The worked examples of the artifact contract, as they stand there, and the
// signatures made for them with throw-away keys.
var exampleArtifacts = map[string]string{
	"fleet.resolved.json": `{"schemaVersion":1,"hosts":{
  "web-01":{"system":"x86_64-linux","tags":["web"],"channel":"edge","closureHash":"0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11","pubkey":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd"},
  "web-02":{"system":"x86_64-linux","tags":["web"],"channel":"stable","closureHash":"1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s-nixos-system-web-02-25.11","pubkey":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep"},
  "db-01":{"system":"x86_64-linux","tags":["db"],"channel":"stable","closureHash":"2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-nixos-system-db-01-25.11","pubkey":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBfLefsrQSDysexl5BmNbgiyjoE/6wHkpACDm4XhgIDO","pin":{"commit":"9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013","reason":"schema freeze","expiresAt":"2026-06-01T00:00:00Z"}}},
 "channels":{"edge":{"rolloutPolicy":"fast","reconcileIntervalMinutes":30,"freshnessWindow":180,"signingIntervalMinutes":60,"compliance":{"frameworks":[],"mode":"disabled"}},
  "stable":{"rolloutPolicy":"staged","reconcileIntervalMinutes":30,"freshnessWindow":1440,"signingIntervalMinutes":60,"compliance":{"frameworks":["nis2"],"mode":"enforce"}}},
 "rolloutPolicies":{"fast":{"strategy":"all-at-once","waves":[],"healthGate":{},"onHealthFailure":"halt"},
  "staged":{"strategy":"staged","healthGate":{"systemdFailedUnits":{"max":0}},"onHealthFailure":"rollback-and-halt","waves":[{"selector":{"tags":["web"],"tagsAny":[],"hosts":[],"channel":null,"all":false},"soakMinutes":10},{"selector":{"tags":["db"],"tagsAny":[],"hosts":[],"channel":null,"all":false},"soakMinutes":30}]}},
 "waves":{"edge":[],"stable":[{"hosts":["web-02"],"soakMinutes":10},{"hosts":["db-01"],"soakMinutes":30}]},"edges":[{"gated":"db-01","gates":"web-02","reason":"web first"}],"channelEdges":[{"gates":"edge","gated":"stable","reason":"canary"}],
 "disruptionBudgets":[{"selector":{"tags":["web"],"tagsAny":[],"hosts":[],"channel":null,"all":false},"maxInFlight":1,"maxInFlightPct":null}],
 "meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z","ciCommit":"4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913","signatureAlgorithm":"ed25519"}}`,
	"manifest-stable.json": `{"schemaVersion":1,"displayName":"stable@4f1c0a9b","channel":"stable","channelRef":"4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913","fleetResolvedHash":"551036413ab6cf917848cfb23ec08349f26e7adf73bb9c1e7f4a0914a2a899fc",
 "hostSet":[{"hostname":"db-01","waveIndex":1,"targetClosure":"2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-nixos-system-db-01-25.11"},{"hostname":"web-02","waveIndex":0,"targetClosure":"1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s-nixos-system-web-02-25.11"}],
 "healthGate":{"systemdFailedUnits":{"max":0}},"complianceFrameworks":["nis2"],"disruptionBudgets":[{"selector":{"tags":["web"],"tagsAny":[],"hosts":[],"channel":null,"all":false},"hosts":["web-01","web-02"],"maxInFlight":1,"maxInFlightPct":null}],
 "meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z","ciCommit":"4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913","signatureAlgorithm":"ed25519"}}`,
	"revocations.json":      `{"schemaVersion":1,"revocations":[{"hostname":"web-02","notBefore":"2026-02-20T00:00:00Z","reason":"key exposed","revokedBy":null}],"meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z","ciCommit":"4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913","signatureAlgorithm":"ed25519"}}`,
	"bootstrap-nonces.json": `{"schemaVersion":1,"bootstrapNonces":[{"nonce":"5f0c1e7a9b3d42868e6fa1c7d2b09e34","hostname":"db-01","expiresAt":"2026-03-02T12:00:00Z","mintedAt":"2026-03-01T11:00:00Z","mintedBy":null}],"meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z","ciCommit":"4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913","signatureAlgorithm":"ed25519"}}`,
}

const exampleTrust = `{"schemaVersion":1,"ciReleaseKey":{"current":{"algorithm":"ed25519","public":"0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc="},"previous":null,"rejectBefore":null,"successor":null,"retireAt":null},
 "cacheKeys":["cache.example.com:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="],"rootCaPem":null,"issuanceCaPems":[],
 "orgRootKey":{"current":{"algorithm":"ed25519","public":"oJql9HpnWYAv+VX43C0qFKXJnSO+l/hkEn/5ODRVpPA="},"previous":null,"rejectBefore":null,"successor":null,"retireAt":null}}`

var exampleSignatures = map[string]string{
	"fleet.resolved.json":   "2lbeZiax/QZO7SdI4cJEwKkyFodKOkxDmpiEwAnAM9zZPuSNPdEnuHHdI8PCS1fxoUy6DQ6YEV5XaTyWWiNGCQ==",
	"manifest-stable.json":  "lS9HkdroTK9T0qclzEm4NAPCZOJMiHP+65MAr9UpM9d2svEiVQo6rM9VXyacKbPQl1AGbw+BBVZJZn+05ZiBCA==",
	"revocations.json":      "20lV1uvsBE6975E/BtrQ9/lxh8jnAJve0ynvbOuYozTS4TozfIADrEpmFpu7yzHtDFxNYEW80aYnzVgD1zrdDQ==",
	"bootstrap-nonces.json": "FVvcvElP4q/JW34eIau3SKC7YET5GVfi5ghXjqqevW04ensXS2oKR5SVhmHCiovd7fCQ78W3sa8n6ydgY1c5Bw==",
}

func exampleSignature(name string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(exampleSignatures[name])
}
