package cp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
)

// pair is a document and its signature at two URLs, as the v1 sources have it.
type pair struct{ artifact, signature, tokenFile string }

func (p pair) given() bool { return p.artifact != "" || p.signature != "" }

func (p pair) check(name string) error {
	if (p.artifact == "") != (p.signature == "") {
		return fmt.Errorf("--%s-artifact-url and --%s-signature-url are given together or not at all", name, name)
	}
	return nil
}

// Config is the configuration of a control plane. Durations of zero mean the
// default.
type Config struct {
	Listen            string
	Listener          net.Listener // used instead of Listen when set
	TLSCert, TLSKey   string
	ClientCA          string
	TrustFile         string
	StateDir, DBPath  string
	AuditLog          string
	Source            string // git+https://…#branch, git+ssh://, git+file://, or a directory
	SourceTokenFile   string
	SourceSSHKeyFile  string
	SourceKnownHosts  string
	ReleaseDir        string
	Artifact          string
	Signature         string
	ChannelRefs       pair
	RevocationsSource pair
	NoncesSource      pair
	Rollouts          pair // URL templates with {rolloutId}
	RolloutsDir       string
	FreshnessWindow   time.Duration
	ConfirmDeadline   time.Duration
	PollInterval      time.Duration // of the source
	CheckinInterval   time.Duration // told to agents
	FleetCACert       string
	FleetCAKey        string
	TPMPubkey         string
	TPMWrapper        string
	AgentSuffix       string
	AgentValidity     time.Duration
	ClosureUpstream   string
	WebhookTokenFile  string
	Strict            bool
	SingleCA          bool
	LegacyHosts       []string
	OpenReads         bool // agents may read the fleet-wide views
	MaxHeld           int
	MaxAnonymous      int
	MaxHandshakes     int
	Version           string
	Log               zerolog.Logger
}

const (
	defaultStateDir = "/var/lib/nixfleet-cp"
	maxPollInterval = 60 * time.Second
)

func flags() []cli.Flag {
	env := func(name string) []string { return []string{"NIXFLEET_CP_" + name} }
	str := func(name, def, usage string) cli.Flag {
		return &cli.StringFlag{Name: name, Value: def, Usage: usage, EnvVars: env(strings.ToUpper(strings.ReplaceAll(name, "-", "_")))}
	}
	num := func(name string, def int, usage string) cli.Flag {
		return &cli.IntFlag{Name: name, Value: def, Usage: usage, EnvVars: env(strings.ToUpper(strings.ReplaceAll(name, "-", "_")))}
	}
	boolean := func(name, usage string) cli.Flag {
		return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: env(strings.ToUpper(strings.ReplaceAll(name, "-", "_")))}
	}
	return []cli.Flag{
		str("listen", "0.0.0.0:8080", "`ADDRESS`:port to listen on"),
		str("tls-cert", "", "server certificate `FILE`, PEM"),
		str("tls-key", "", "its key `FILE`, PEM"),
		str("client-ca", "", "bundle `FILE` of client CAs: the issuing CA and the fleet root"),
		str("trust-file", "/etc/nixfleet/cp/trust.json", "trust roots `FILE`"),
		str("state-dir", defaultStateDir, "`DIR` for the last accepted release and the git mirror"),
		str("db-path", "", "state database `FILE`; without one nothing is dispatched"),
		str("audit-log", "", "`FILE` of issued certificates, JSON lines (default: issuance.log in the state directory)"),
		str("source", "", "where releases come from: git+https://…#branch, git+ssh://…, git+file://… or a `DIR`"),
		str("source-token-file", "", "`FILE` with the token for git+https"),
		str("source-ssh-key-file", "", "`FILE` with the deploy key for git+ssh"),
		str("source-known-hosts-file", "", "known_hosts `FILE` for git+ssh"),
		str("release-dir", "releases", "`DIR` of releases in the repository"),
		&cli.DurationFlag{Name: "poll-interval", Value: maxPollInterval, EnvVars: env("POLL_INTERVAL"), Usage: "look at the source this often, 60s at most"},
		&cli.DurationFlag{Name: "checkin-interval", Value: 60 * time.Second, EnvVars: env("CHECKIN_INTERVAL"), Usage: "told to agents as the time to their next check-in"},
		str("webhook-token-file", "", "`FILE` with the token of POST /v1/webhook, which announces a commit"),
		str("artifact", "", "local fleet document `FILE`, used until polling succeeds"),
		str("signature", "", "its signature `FILE`"),
		str("observed", "", "accepted for v1 set-ups; the database takes its place (`FILE`)"),
		num("freshness-window-secs", 2592000, "oldest release that is accepted, in seconds"),
		num("confirm-deadline-secs", 360, "seconds from the start of an activation to its confirm"),
		str("channel-refs-artifact-url", "", "`URL` of the fleet document"),
		str("channel-refs-signature-url", "", "`URL` of its signature"),
		str("channel-refs-token-file", "", "`FILE` with the bearer token for both"),
		str("revocations-artifact-url", "", "`URL` of the revocation list"),
		str("revocations-signature-url", "", "`URL` of its signature"),
		str("revocations-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		str("bootstrap-nonces-artifact-url", "", "`URL` of the list of bootstrap nonces"),
		str("bootstrap-nonces-signature-url", "", "`URL` of its signature"),
		str("bootstrap-nonces-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		str("rollouts-source-artifact-url-template", "", "`URL` of a manifest, with {rolloutId}"),
		str("rollouts-source-signature-url-template", "", "`URL` of its signature, with {rolloutId}"),
		str("rollouts-source-token-file", "", "`FILE` with the bearer token for both (default: that of channel refs)"),
		str("rollouts-dir", "", "`DIR` of manifests, tried before the URL"),
		str("fleet-ca-cert", "", "certificate `FILE` of the issuing CA"),
		str("fleet-ca-key", "", "its key `FILE`; without a key nobody can enrol or renew"),
		str("tpm-ca-pubkey-raw", "", "`FILE` with the 64 raw bytes of the issuing CA's key in the TPM"),
		str("tpm-ca-sign-wrapper", "", "`PROGRAM` that signs a file with it"),
		str("agent-cn-suffix", "", "`SUFFIX` of agents' certificate names"),
		num("agent-cert-validity-secs", 2592000, "validity of agents' certificates in seconds, at least 60"),
		str("closure-upstream", "", "base `URL` of the binary cache behind /v1/agent/closure"),
		boolean("strict", "require a client CA, both lists and, on POST, the protocol header"),
		boolean("single-ca", "agents' and operators' certificates hang under one CA"),
		&cli.StringSliceFlag{Name: "legacy-hosts", EnvVars: env("LEGACY_HOSTS"), Usage: "`HOST`s that may still use their bare name as certificate name"},
		boolean("open-reads", "let agents read the fleet-wide views, as v1 does"),
		num("max-held", 100000, "check-ins held open at once; the rest are answered as plain polls"),
		num("max-anonymous", 256, "connections without a certificate at once"),
		num("max-handshakes", 256, "TLS handshakes at once"),
		str("log-level", "info", "`LEVEL`: debug, info, warn or error"),
		&cli.BoolFlag{Name: "check-config", Usage: "check the configuration and exit; nothing is opened, written or listened on"},
	}
}

func configOf(c *cli.Context, log zerolog.Logger) Config {
	p := func(name, artifact, signature string) pair {
		token := c.String(name + "-token-file")
		if token == "" {
			token = c.String("channel-refs-token-file")
		}
		return pair{c.String(name + "-" + artifact), c.String(name + "-" + signature), token}
	}
	secs := func(name string) time.Duration { return time.Duration(c.Int(name)) * time.Second }
	return Config{
		Listen: c.String("listen"), TLSCert: c.String("tls-cert"), TLSKey: c.String("tls-key"), ClientCA: c.String("client-ca"),
		TrustFile: c.String("trust-file"), StateDir: c.String("state-dir"), DBPath: c.String("db-path"), AuditLog: c.String("audit-log"),
		Source: c.String("source"), SourceTokenFile: c.String("source-token-file"), SourceSSHKeyFile: c.String("source-ssh-key-file"),
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
		Strict: c.Bool("strict"), SingleCA: c.Bool("single-ca"), LegacyHosts: c.StringSlice("legacy-hosts"), OpenReads: c.Bool("open-reads"),
		MaxHeld: c.Int("max-held"), MaxAnonymous: c.Int("max-anonymous"), MaxHandshakes: c.Int("max-handshakes"),
		Version: c.App.Version, Log: log,
	}
}

// complete fills in defaults and finds what cannot work, all of it at once.
func (c *Config) complete() error {
	var problems []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	if c.StateDir == "" {
		c.StateDir = defaultStateDir
	}
	if c.AuditLog == "" {
		c.AuditLog = filepath.Join(c.StateDir, "issuance.log")
	}
	if c.ReleaseDir == "" {
		c.ReleaseDir = "releases"
	}
	if c.PollInterval <= 0 || c.PollInterval > maxPollInterval {
		c.PollInterval = maxPollInterval
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.FreshnessWindow: 30 * 24 * time.Hour, &c.ConfirmDeadline: 360 * time.Second,
		&c.CheckinInterval: 60 * time.Second, &c.AgentValidity: 30 * 24 * time.Hour,
	} {
		if *d == 0 {
			*d = def
		}
	}
	for n, def := range map[*int]int{&c.MaxHeld: 100000, &c.MaxAnonymous: 256, &c.MaxHandshakes: 256} {
		if *n == 0 {
			*n = def
		}
	}
	need(c.TLSCert != "" && c.TLSKey != "", "--tls-cert and --tls-key are needed: nixfleet keygen server makes both")
	need(c.AgentSuffix != "", "--agent-cn-suffix is needed: the suffix given to nixfleet keygen")
	need(c.TrustFile != "", "--trust-file is needed")
	need(c.AgentValidity >= time.Minute, "--agent-cert-validity-secs must be at least 60")
	need(c.FreshnessWindow > 0 && c.ConfirmDeadline > 0, "windows and deadlines must be above zero")
	need(c.Source != "" || c.ChannelRefs.given() || c.Artifact != "", "no source of releases: give --source, or --artifact and --signature, or the channel-refs URLs")
	need((c.Artifact == "") == (c.Signature == ""), "--artifact and --signature are given together")
	need((c.TPMPubkey == "") == (c.TPMWrapper == ""), "--tpm-ca-pubkey-raw and --tpm-ca-sign-wrapper are given together")
	for name, p := range map[string]pair{"channel-refs": c.ChannelRefs, "revocations": c.RevocationsSource, "bootstrap-nonces": c.NoncesSource} {
		if err := p.check(name); err != nil {
			problems = append(problems, err)
		}
	}
	if c.Rollouts.given() {
		need(strings.Contains(c.Rollouts.artifact, "{rolloutId}") && strings.Contains(c.Rollouts.signature, "{rolloutId}"),
			"both rollouts-source URL templates must contain {rolloutId}")
	}
	need(!c.RevocationsSource.given() || c.DBPath != "", "revocation URLs need --db-path")
	if c.Strict {
		need(c.ClientCA != "", "--strict needs --client-ca")
		need(c.Source != "" || c.RevocationsSource.given() && c.NoncesSource.given(), "--strict needs the revocations and bootstrap-nonces URLs")
	}
	if _, err := c.source(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// readable also opens the files that must be there at start.
func (c *Config) readable() error {
	var problems []error
	for _, path := range []string{c.TLSCert, c.TLSKey, c.ClientCA, c.TrustFile, c.FleetCACert, c.FleetCAKey, c.TPMPubkey, c.SourceTokenFile, c.SourceSSHKeyFile, c.WebhookTokenFile} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		f.Close()
	}
	return errors.Join(problems...)
}

// source is what the configuration names, without touching it.
func (c *Config) source() (Source, error) {
	switch {
	case strings.HasPrefix(c.Source, "git+"):
		return NewGitSource(GitConfig{
			URL: c.Source, ReleaseDir: c.ReleaseDir, Mirror: filepath.Join(c.StateDir, "source.git"),
			TokenFile: c.SourceTokenFile, SSHKeyFile: c.SourceSSHKeyFile, KnownHosts: c.SourceKnownHosts,
		})
	case strings.Contains(c.Source, "://"):
		return nil, fmt.Errorf("--source %q: use git+https://, git+ssh://, git+file:// or a directory", c.Source)
	case c.Source != "":
		return NewDirSource(c.Source), nil
	case c.ChannelRefs.given():
		return NewHTTPSource(HTTPConfig{Fleet: c.ChannelRefs, Revocations: c.RevocationsSource, Nonces: c.NoncesSource}), nil
	}
	return NewFilesSource(c.Artifact, c.Signature), nil
}

// fleetName is the fleet document's name within the source.
func (c *Config) fleetName() string {
	if c.Source == "" && !c.ChannelRefs.given() {
		return filepath.Base(c.Artifact)
	}
	return fleet.FleetName
}
