package modules

import (
	"strings"
	"testing"
)

// contract is section 7 of the contract on command lines: an option, its type and its
// default, none where it must be set. A type of ours may refuse more than the
// contract's, and its name holds the contract's.
const contract = `
services.nixfleet-agent enable; boolean; false
services.nixfleet-agent package; package; pkgs.nixfleet
services.nixfleet-agent controlPlaneUrl; string;
services.nixfleet-agent machineId; string; config.networking.hostName
services.nixfleet-agent pollInterval; integer; 60
services.nixfleet-agent renewalThresholdFraction; null or floating point number; null
services.nixfleet-agent trustFile; absolute path; "/etc/nixfleet/agent/trust.json"
services.nixfleet-agent tls.caCert; null or string; null
services.nixfleet-agent tls.clientCert; null or string; "/var/lib/nixfleet/agent-cert.pem"
services.nixfleet-agent tls.clientKey; null or string; "/etc/ssh/ssh_host_ed25519_key"
services.nixfleet-agent bootstrapTokenFile; null or string; null
services.nixfleet-agent stateDir; string; "/var/lib/nixfleet-agent"
services.nixfleet-agent sshHostKeyFile; string; "/etc/ssh/ssh_host_ed25519_key"
services.nixfleet-agent tags; list of string; [ ]
services.nixfleet-agent healthChecks.mode; one of; "enforce"
services.nixfleet-agent healthChecks.http; list of; [ ]
services.nixfleet-agent healthChecks.tcp; list of; [ ]
services.nixfleet-agent healthChecks.exec; list of; [ ]
services.nixfleet-agent complianceGate.mode; one of "auto", "disabled", "permissive", "enforce"; "auto"
services.nixfleet-control-plane enable; boolean; false
services.nixfleet-control-plane package; package; pkgs.nixfleet
services.nixfleet-control-plane listen; string; "0.0.0.0:8080"
services.nixfleet-control-plane openFirewall; boolean; false
services.nixfleet-control-plane tls.cert; null or string; null
services.nixfleet-control-plane tls.key; null or string; null
services.nixfleet-control-plane tls.clientCa; null or string; null
services.nixfleet-control-plane artifactPath; string; "/var/lib/nixfleet-cp/fleet/releases/fleet.resolved.json"
services.nixfleet-control-plane signaturePath; string; config.services.nixfleet-control-plane.artifactPath + ".sig"
services.nixfleet-control-plane observedPath; string; "/var/lib/nixfleet-cp/observed.json"
services.nixfleet-control-plane trustFile; absolute path; "/etc/nixfleet/cp/trust.json"
services.nixfleet-control-plane freshnessWindowMinutes; positive integer; 43200
services.nixfleet-control-plane strict; boolean; false
services.nixfleet-control-plane confirmDeadlineSecs; positive integer; 360
services.nixfleet-control-plane fleetCaCert; null or string; null
services.nixfleet-control-plane fleetCaKey; null or string; null
services.nixfleet-control-plane tpmCaPubkeyRaw; null or string; null
services.nixfleet-control-plane tpmCaSignWrapper; null or string; null
services.nixfleet-control-plane agentCnSuffix; string;
services.nixfleet-control-plane agentCertValiditySecs; null or (positive integer; null
services.nixfleet-control-plane auditLogPath; string; "/var/lib/nixfleet-cp/issuance.log"
services.nixfleet-control-plane dbPath; null or string; "/var/lib/nixfleet-cp/state.db"
services.nixfleet-control-plane closureUpstream; null or string; null
services.nixfleet-control-plane rolloutsDir; null or string; null
services.nixfleet-control-plane channelRefsSource.artifactUrl; null or string; null
services.nixfleet-control-plane channelRefsSource.signatureUrl; null or string; null
services.nixfleet-control-plane channelRefsSource.tokenFile; null or string; null
services.nixfleet-control-plane revocationsSource.artifactUrl; null or string; null
services.nixfleet-control-plane revocationsSource.signatureUrl; null or string; null
services.nixfleet-control-plane revocationsSource.tokenFile; null or string; null
services.nixfleet-control-plane bootstrapNoncesSource.artifactUrl; null or string; null
services.nixfleet-control-plane bootstrapNoncesSource.signatureUrl; null or string; null
services.nixfleet-control-plane bootstrapNoncesSource.tokenFile; null or string; null
services.nixfleet-control-plane rolloutsSource.artifactUrlTemplate; null or string; null
services.nixfleet-control-plane rolloutsSource.signatureUrlTemplate; null or string; null
services.nixfleet-control-plane rolloutsSource.tokenFile; null or string; null
services.nixfleet-cache enable; boolean; false
services.nixfleet-cache cacheUrl; string;
services.nixfleet-cache publicKey; string;
nixfleet.operator enable; boolean; false
nixfleet.operator orgRootKeyFile; null or string; null
nixfleet.operator fleetRootCertFile; null or string; null
nixfleet.operator fleetRootKeyFile; null or string; null
nixfleet.trust ciReleaseKey.current; null or (submodule); null
nixfleet.trust ciReleaseKey.previous; null or (submodule); null
nixfleet.trust ciReleaseKey.successor; null or (submodule); null
nixfleet.trust ciReleaseKey.current.algorithm; one of "ed25519", "ecdsa-p256"; "ed25519"
nixfleet.trust ciReleaseKey.current.public; string;
nixfleet.trust ciReleaseKey.rejectBefore; null or string; null
nixfleet.trust ciReleaseKey.retireAt; null or string; null
nixfleet.trust orgRootKey.current; null or string; null
nixfleet.trust orgRootKey.previous; null or string; null
nixfleet.trust orgRootKey.successor; null or string; null
nixfleet.trust orgRootKey.rejectBefore; null or string; null
nixfleet.trust orgRootKey.retireAt; null or string; null
nixfleet.trust cacheKeys; list of string; [ ]
nixfleet.trust rootCAPem; null or string; null
nixfleet.trust issuanceCAPems; list of string; [ ]
`

// Configurations written for v1 mean the same here: every option of the contract is
// there, of its type and with its default.
func TestOptionsOfTheContract(t *testing.T) {
	options := readReference(t)
	for line := range strings.Lines(strings.TrimSpace(contract)) {
		chapter, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		part := strings.SplitN(rest, ";", 3)
		name, kind, def := chapter+"."+part[0], strings.TrimSpace(part[1]), strings.TrimSpace(part[2])
		o, ok := options[chapter][name]
		switch {
		case !ok:
			t.Errorf("there is no option %s", name)
		case !strings.Contains(o.kind, kind):
			t.Errorf("%s is of type %s, want %s", name, o.kind, kind)
		case o.def != def:
			t.Errorf("%s is %q by default, want %q", name, o.def, def)
		}
	}
}
