package modules

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// setting is the option that sets a flag. Of an option in minutes the flag has the
// seconds.
type setting struct {
	option  string
	minutes bool
}

func by(option string) setting { return setting{option: option} }

// command is one that a module runs: what sets each of its flags, and why some are
// nobody's to set.
type command struct {
	args    []string
	chapter string   // of the reference, with the options
	full    []string // configurations that set every flag between them
	options map[string]setting
	apart   map[string]string
}

var (
	agentRun = command{
		args: []string{"agent", "run"}, chapter: "services.nixfleet-agent", full: []string{"agent-full"},
		options: map[string]setting{
			"control-plane-url": by("controlPlaneUrl"), "machine-id": by("machineId"), "poll-interval": by("pollInterval"),
			"trust-file": by("trustFile"),
			"ca-cert":    by("tls.caCert"), "client-cert": by("tls.clientCert"), "client-key": by("tls.clientKey"),
			"ssh-host-key-file":    by("sshHostKeyFile"),
			"bootstrap-token-file": by("bootstrapTokenFile"), "compliance-gate-mode": by("complianceGate.mode"),
			"health-checks-config":       by("healthChecks.http"),
			"renewal-threshold-fraction": by("renewalThresholdFraction"), "settle-time": by("settleTimeSeconds"),
			"max-manifest-age":       by("maxManifestAge"),
			"allow-v1-control-plane": by("allowV1ControlPlane"), "allow-remote-rollback": by("allowRemoteRollback"),
			"allow-volatile-state": by("allowVolatileState"),
			"defer-on":             by("deferOn"), "reboot-policy": by("rebootPolicy.mode"),
			"prefetch-spread": by("prefetchSpreadSeconds"),
			"metrics-file":    by("metricsFile"),
			"log-level":       by("logLevel"), "state-dir": by("stateDir"),
		},
		apart: map[string]string{
			"agent-outside-closure": "the module puts the agent into every system that it activates",
			"check-config":          "ends instead of running",
			"root":                  "the host is the machine's own",
			"supervisor":            "the platform's",
			"nix-bin-dir":           "that of nix.package, set by the module",
			"nix-conf-dir":          "the machine's own",
			"substituters":          "those of nix.settings and services.nixfleet-cache",
			"trusted-public-keys":   "those of nix.settings and nixfleet.trust.cacheKeys",
		},
	}
	cpServe = command{
		args: []string{"cp", "serve"}, chapter: "services.nixfleet-control-plane",
		full: []string{"control-plane", "control-plane-tpm", "control-plane-v1"},
		options: map[string]setting{
			"listen": by("listen"), "page-listen": by("pageListen"),
			"tls-cert": by("tls.cert"), "tls-key": by("tls.key"), "client-ca": by("tls.clientCa"),
			"trust-file": by("trustFile"),
			"db-path":    by("dbPath"), "audit-log": by("auditLogPath"), "source": by("source.url"),
			"source-token-file":   by("source.tokenFile"),
			"source-ssh-key-file": by("source.sshKeyFile"), "source-known-hosts-file": by("source.knownHostsFile"),
			"release-dir":   by("source.releaseDir"),
			"poll-interval": by("pollIntervalSeconds"), "checkin-interval": by("checkinIntervalSeconds"),
			"webhook-token-file": by("webhookTokenFile"),
			"artifact":           by("artifactPath"), "signature": by("signaturePath"), "observed": by("observedPath"),
			"freshness-window-secs": {"freshnessWindowMinutes", true}, "confirm-deadline-secs": by("confirmDeadlineSecs"),
			"channel-refs-artifact-url":              by("channelRefsSource.artifactUrl"),
			"channel-refs-signature-url":             by("channelRefsSource.signatureUrl"),
			"channel-refs-token-file":                by("channelRefsSource.tokenFile"),
			"revocations-artifact-url":               by("revocationsSource.artifactUrl"),
			"revocations-signature-url":              by("revocationsSource.signatureUrl"),
			"revocations-token-file":                 by("revocationsSource.tokenFile"),
			"bootstrap-nonces-artifact-url":          by("bootstrapNoncesSource.artifactUrl"),
			"bootstrap-nonces-signature-url":         by("bootstrapNoncesSource.signatureUrl"),
			"bootstrap-nonces-token-file":            by("bootstrapNoncesSource.tokenFile"),
			"rollouts-source-artifact-url-template":  by("rolloutsSource.artifactUrlTemplate"),
			"rollouts-source-signature-url-template": by("rolloutsSource.signatureUrlTemplate"),
			"rollouts-source-token-file":             by("rolloutsSource.tokenFile"),
			"rollouts-dir":                           by("rolloutsDir"), "fleet-ca-cert": by("fleetCaCert"),
			"fleet-ca-key":      by("fleetCaKey"),
			"tpm-ca-pubkey-raw": by("tpmCaPubkeyRaw"), "tpm-ca-sign-wrapper": by("tpmCaSignWrapper"),
			"agent-cn-suffix":          by("agentCnSuffix"),
			"agent-cert-validity-secs": by("agentCertValiditySecs"), "closure-upstream": by("closureUpstream"),
			"strict": by("strict"), "single-ca": by("singleCa"),
			"accept-release-without-heads": by("acceptReleaseWithoutHeads"),
			"legacy-hosts":                 by("legacyHosts"), "read-all-agents": by("readAllAgents"), "max-held": by("maxHeld"),
			"max-anonymous":  by("maxAnonymous"),
			"max-handshakes": by("maxHandshakes"), "max-rate": by("maxRate"), "max-source-rate": by("maxSourceRate"),
			"log-level": by("logLevel"), "log-format": by("logFormat"),
			"notify-webhook-url":             by("notify.webhook.url"),
			"notify-webhook-secret-file":     by("notify.webhook.secretFile"),
			"notify-alertmanager-url":        by("notify.alertmanager.url"),
			"notify-alertmanager-token-file": by("notify.alertmanager.tokenFile"),
			"notify-mail-server":             by("notify.mail.server"),
			"notify-mail-password-file":      by("notify.mail.passwordFile"),
			"notify-mail-from":               by("notify.mail.from"), "notify-mail-to": by("notify.mail.to"),
			"notify-on": by("notify.on"), "notify-silent-after": {"notify.silentAfterMinutes", true},
		},
		apart: map[string]string{
			"check-config": "ends instead of serving",
			"state-dir":    "the unit's StateDirectory, set by the module",
		},
	}
)

// agentOnDarwin is agentRun as launchd runs it: the same options, without those for
// which macOS has no counterpart.
func agentOnDarwin() command {
	c := agentRun
	c.chapter, c.full = "services.nixfleet-agent on nix-darwin", []string{"darwin-full"}
	c.options, c.apart = maps.Clone(c.options), maps.Clone(c.apart)
	for flag, reason := range map[string]string{
		"defer-on":      "its components are those of Linux",
		"reboot-policy": "no boot loader there starts a system once and falls back",
	} {
		delete(c.options, flag)
		c.apart[flag] = reason
	}
	c.apart["nix-bin-dir"] = "on PATH: nix-darwin may leave Nix to an installer"
	return c
}

var (
	helpLine    = regexp.MustCompile(`(?m)^ +--([a-z0-9-]+)(.*)$`)
	helpDefault = regexp.MustCompile(`\(default: ([^()]*)\)(?: \[\$[A-Z0-9_]+\])?$`)
)

// flagsOf are the flags of a command with their defaults, as its help shows them.
func flagsOf(t testing.TB, binary string, args []string) map[string]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, append(slices.Clone(args), "--help")...).Output()
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	flags := map[string]string{}
	for _, m := range helpLine.FindAllStringSubmatch(string(out), -1) {
		if m[1] == "help" {
			continue
		}
		var def string
		if d := helpDefault.FindStringSubmatch(m[2]); d != nil {
			def = d[1]
		}
		flags[m[1]] = def
	}
	if len(flags) < 20 {
		t.Fatalf("%q has the flags %v", args, flags)
	}
	return flags
}

// Each flag of what the modules run is set by an option, or stands among those that are
// nobody's to set; and an option that is not touched changes no default.
func TestEveryFlagHasItsOption(t *testing.T) {
	binary, options := build(t), readReference(t)
	for _, c := range []command{agentRun, agentOnDarwin(), cpServe} {
		t.Run(c.chapter, func(t *testing.T) {
			set := map[string]bool{}
			for _, name := range c.full {
				for _, flag := range flagsSet(t, name) {
					set[flag] = true
				}
			}
			flags := flagsOf(t, binary, c.args)
			for flag, def := range flags {
				s, ok := c.options[flag]
				switch reason := c.apart[flag]; {
				case !ok && reason == "":
					t.Errorf("no option sets --%s, and no reason says why", flag)
				case ok && reason != "":
					t.Errorf("--%s is set by %s and has a reason not to be: %s", flag, s.option, reason)
				case ok && !set[flag]:
					t.Errorf("none of the configurations %q sets --%s", c.full, flag)
				}
				if ok {
					s.sameDefault(t, options[c.chapter], c.chapter, flag, def)
				}
			}
			for _, known := range slices.Concat(slices.Collect(maps.Keys(c.options)), slices.Collect(maps.Keys(c.apart))) {
				if _, ok := flags[known]; !ok {
					t.Errorf("there is no flag --%s", known)
				}
			}
		})
	}
}

// sameDefault compares what an untouched option gives with what the flag is without it.
// null, false and an empty list leave the flag out.
func (s setting) sameDefault(t testing.TB, options map[string]entry, chapter, flag, def string) {
	t.Helper()
	prefix, _, _ := strings.Cut(chapter, " ")
	o, ok := options[prefix+"."+s.option]
	if !ok {
		t.Errorf("--%s: there is no option %s.%s", flag, prefix, s.option)
		return
	}
	have := o.def
	if slices.Contains([]string{"", "null", "false", "[ ]"}, have) {
		return
	}
	want := strings.Trim(def, `"`)
	if d, err := time.ParseDuration(def); err == nil {
		want = strconv.Itoa(int(d / time.Second))
	}
	if n, err := strconv.Atoi(have); err == nil && s.minutes {
		have = strconv.Itoa(60 * n)
	}
	// What has no default of its own, or describes it in words, is the module's to choose.
	if want != "" && !strings.Contains(want, " ") && strings.Trim(have, `"`) != want {
		t.Errorf("--%s is %s by default, and %s is %s", flag, want, s.option, have)
	}
}

// flagsSet are the flags of all command lines of a committed configuration.
func flagsSet(t testing.TB, name string) []string {
	t.Helper()
	var lines [][]string
	services, err := filepath.Glob(filepath.Join(renderedDir(name), "*.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range services {
		lines = append(lines, execStart(t, unit))
	}
	for _, args := range daemons(t, name) {
		lines = append(lines, args)
	}
	var flags []string
	for _, args := range lines {
		for _, arg := range args {
			if name, ok := strings.CutPrefix(arg, "--"); ok {
				name, _, _ = strings.Cut(name, "=")
				flags = append(flags, name)
			}
		}
	}
	return flags
}

// entry is one option in docs/options.md.
type entry struct{ kind, def string }

// readReference reads the options of each chapter of docs/options.md.
func readReference(t testing.TB) map[string]map[string]entry {
	t.Helper()
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]entry{}
	for _, chapter := range strings.Split(string(text), "\n## ")[1:] {
		title, rest, _ := strings.Cut(chapter, "\n")
		all[title] = map[string]entry{}
		for _, text := range strings.Split(rest, "\n### `")[1:] {
			name, body, _ := strings.Cut(text, "`\n")
			var o entry
			for line := range strings.Lines(body) {
				line = strings.TrimSpace(line)
				if kind, ok := strings.CutPrefix(line, "- type: "); ok {
					o.kind = kind
				}
				if def, ok := strings.CutPrefix(line, "- default: `"); ok {
					o.def = strings.TrimSuffix(def, "`")
				}
			}
			all[title][name] = o
		}
	}
	return all
}
