package cp

import (
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/cp/source"
)

// variables are those of the flags of all commands of the control plane.
const variables = "NIXFLEET_CP"

func textFlag(name, def, usage string) cli.Flag {
	return &cli.StringFlag{Name: name, Value: def, Usage: usage}
}

func numberFlag(name string, def int, usage string) cli.Flag {
	return &cli.IntFlag{Name: name, Value: def, Usage: usage}
}

func durationFlag(name string, def time.Duration, usage string) cli.Flag {
	return &cli.DurationFlag{Name: name, Value: def, Usage: usage}
}

func boolFlag(name, usage string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: usage}
}

func flags() []cli.Flag {
	return command.Variables(variables, append(notifyFlags(),
		textFlag("listen", "0.0.0.0:8080", "`ADDRESS`:port to listen on"),
		textFlag("page-listen", "", "`ADDRESS`:port of the page for operators' browsers; without one there is no page"),
		textFlag("tls-cert", "", "server certificate `FILE`, PEM"),
		textFlag("tls-key", "", "its key `FILE`, PEM"),
		textFlag("client-ca", "", "bundle `FILE` of client CAs: the issuing CA and the fleet root"),
		textFlag("trust-file", "/etc/nixfleet/cp/trust.json", "trust roots `FILE`"),
		textFlag("state-dir", "",
			"`DIR` for the last accepted release and the git mirror (default: that of --db-path, or "+defaultStateDir+")"),
		textFlag("db-path", "", "state database `FILE`; without one nothing is dispatched"),
		textFlag("audit-log", "", "`FILE` of issued certificates, JSON lines (default: issuance.log in the state directory)"),
		textFlag("source", "", "where releases come from: git+https://…#branch, git+ssh://…, git+file://… or a `DIR`"),
		textFlag("source-token-file", "", "`FILE` with the token for git+https"),
		textFlag("source-ssh-key-file", "", "`FILE` with the deploy key for git+ssh"),
		textFlag("source-known-hosts-file", "", "known_hosts `FILE` for git+ssh"),
		textFlag("release-dir", "releases", "`DIR` of releases in the repository"),
		durationFlag("poll-interval", maxPollInterval, "poll the source this often, 60s at most"),
		durationFlag("checkin-interval", time.Minute, "time between check-ins; the control plane tells agents"),
		textFlag("webhook-token-file", "", "`FILE` with the token of POST /v1/webhook, which announces a commit"),
		textFlag("artifact", "", "local fleet document `FILE`, used until the source gives a release"),
		textFlag("signature", "", "its signature `FILE`"),
		textFlag("observed", "", "accepted for v1 configurations and not read: the database replaces it (`FILE`)"),
		numberFlag("freshness-window-secs", 2592000, "age of the oldest release that is accepted, in seconds"),
		numberFlag("confirm-deadline-secs", 360, "seconds from the start of an activation to its confirm"),
		textFlag("channel-refs-artifact-url", "", "`URL` of the fleet document"),
		textFlag("channel-refs-signature-url", "", "`URL` of its signature"),
		textFlag("channel-refs-token-file", "", "`FILE` with the bearer token for both"),
		textFlag("revocations-artifact-url", "", "`URL` of the revocation list"),
		textFlag("revocations-signature-url", "", "`URL` of its signature"),
		textFlag("revocations-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		textFlag("bootstrap-nonces-artifact-url", "", "`URL` of the list of bootstrap nonces"),
		textFlag("bootstrap-nonces-signature-url", "", "`URL` of its signature"),
		textFlag("bootstrap-nonces-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		textFlag("rollouts-source-artifact-url-template", "", "`URL` of a manifest, with {rolloutId}"),
		textFlag("rollouts-source-signature-url-template", "", "`URL` of its signature, with {rolloutId}"),
		textFlag("rollouts-source-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		textFlag("rollouts-dir", "", "`DIR` of manifests, tried before the URL"),
		textFlag("fleet-ca-cert", "", "certificate `FILE` of the issuing CA"),
		textFlag("fleet-ca-key", "", "its key `FILE`; without one no host can enrol or renew"),
		textFlag("tpm-ca-pubkey-raw", "", "`FILE` with the 64 raw bytes of the issuing CA's key in the TPM"),
		textFlag("tpm-ca-sign-wrapper", "", "`PROGRAM` that signs a file with it"),
		textFlag("agent-cn-suffix", "", "`SUFFIX` of agents' certificate names"),
		numberFlag("agent-cert-validity-secs", 2592000, "validity of agents' certificates in seconds, at least 60"),
		textFlag("closure-upstream", "", "base `URL` of the binary cache behind /v1/agent/closure"),
		boolFlag("strict", "require a client CA, both lists and, on POST, the protocol header"),
		boolFlag("accept-release-without-heads",
			"accept, once, a release without heads after one with heads, as when a release tool of v1 takes over"),
		boolFlag("single-ca", "agents' and operators' certificates are under one CA"),
		&cli.StringSliceFlag{Name: "legacy-hosts", Usage: "`HOST`s whose certificates may still bear the bare host name"},
		boolFlag("read-all-agents", "let hosts read the fleet-wide views, as v1 does"),
		numberFlag("max-held", 100000, "check-ins held open at once; further ones are answered at once"),
		numberFlag("max-anonymous", 256, "connections without a certificate at once"),
		numberFlag("max-handshakes", 256, "TLS handshakes at once"),
		numberFlag("max-rate", 20, "requests per second of one host on average; a minute's worth may come at once"),
		numberFlag("max-source-rate", 50,
			"requests per second without a certificate from one address or IPv6 /64; five seconds' worth may come at once"),
		textFlag("log-level", "info", "`LEVEL`: debug, info, warn or error"),
		textFlag("log-format", "json", "`FORMAT` of the log on stdout: json or pretty"),
		boolFlag("check-config", "check the configuration and exit; nothing is written or listened on"),
	)...)
}

func configOf(c *cli.Context, log zerolog.Logger) Config {
	p := func(name, artifact, signature string) source.Pair {
		token := c.String(name + "-token-file")
		if token == "" {
			token = c.String("channel-refs-token-file")
		}
		return source.Pair{Artifact: c.String(name + "-" + artifact), Signature: c.String(name + "-" + signature),
			TokenFile: token}
	}
	secs := func(name string) time.Duration { return command.Seconds(c.Int(name)) }
	return Config{
		Listen: c.String("listen"), TLSCert: c.String("tls-cert"), TLSKey: c.String("tls-key"),
		PageListen: c.String("page-listen"), ClientCA: c.String("client-ca"),
		TrustFile: c.String("trust-file"), StateDir: c.String("state-dir"), DBPath: c.String("db-path"),
		AuditLog: c.String("audit-log"),
		Source:   c.String("source"), SourceTokenFile: c.String("source-token-file"),
		SourceSSHKeyFile: c.String("source-ssh-key-file"),
		SourceKnownHosts: c.String("source-known-hosts-file"), ReleaseDir: c.String("release-dir"),
		Artifact: c.String("artifact"), Signature: c.String("signature"),
		ChannelRefs:       p("channel-refs", "artifact-url", "signature-url"),
		RevocationsSource: p("revocations", "artifact-url", "signature-url"),
		NoncesSource:      p("bootstrap-nonces", "artifact-url", "signature-url"),
		Rollouts:          p("rollouts-source", "artifact-url-template", "signature-url-template"),
		RolloutsDir:       c.String("rollouts-dir"),
		FreshnessWindow:   secs("freshness-window-secs"), ConfirmDeadline: secs("confirm-deadline-secs"),
		PollInterval: c.Duration("poll-interval"), CheckinInterval: c.Duration("checkin-interval"),
		FleetCACert: c.String("fleet-ca-cert"), FleetCAKey: c.String("fleet-ca-key"),
		TPMPubkey: c.String("tpm-ca-pubkey-raw"), TPMWrapper: c.String("tpm-ca-sign-wrapper"),
		AgentSuffix: c.String("agent-cn-suffix"), AgentValidity: secs("agent-cert-validity-secs"),
		ClosureUpstream: c.String("closure-upstream"), WebhookTokenFile: c.String("webhook-token-file"),
		Strict: c.Bool("strict"), SingleCA: c.Bool("single-ca"),
		WithoutHeads: c.Bool("accept-release-without-heads"), LegacyHosts: c.StringSlice("legacy-hosts"),
		OpenReads: c.Bool("read-all-agents"),
		MaxHeld:   c.Int("max-held"), MaxAnonymous: c.Int("max-anonymous"), MaxHandshakes: c.Int("max-handshakes"),
		MaxRate: c.Int("max-rate"), MaxSourceRate: c.Int("max-source-rate"),
		Notify:  notifyConfigOf(c),
		Version: c.App.Version, Log: log,
	}
}
