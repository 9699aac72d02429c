package cp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
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
	MaxRate           int // requests a second of one host, a minute's worth at once
	MaxSourceRate     int // requests a second with a token only from one address, five seconds' worth at once
	Version           string
	// Reload asks for a look at all files and at the source; nil for never.
	Reload <-chan os.Signal
	// Jitter is a random time below its argument; the default is fair.
	Jitter func(time.Duration) time.Duration
	// Log should write JSON lines; operators match on its messages.
	Log zerolog.Logger
}

const (
	defaultStateDir = "/var/lib/nixfleet-cp"
	maxPollInterval = 60 * time.Second
	maxRate         = 1_000_000 // requests a second, which is none
)

// complete fills in defaults and finds what cannot work, all of it at once.
func (c *Config) complete() error {
	var problems []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	switch {
	case c.StateDir != "":
	case c.DBPath != "":
		c.StateDir = filepath.Dir(c.DBPath)
	default:
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
	if c.Jitter == nil {
		c.Jitter = rand.N[time.Duration]
	}
	for n, def := range map[*int]int{&c.MaxHeld: 100000, &c.MaxAnonymous: 256, &c.MaxHandshakes: 256, &c.MaxRate: 20, &c.MaxSourceRate: 50} {
		if *n == 0 {
			*n = def
		}
	}
	need(c.TLSCert != "" && c.TLSKey != "", "--tls-cert and --tls-key are needed: nixfleet keygen server makes both")
	need(c.AgentSuffix != "", "--agent-cn-suffix is needed: the suffix given to nixfleet keygen")
	need(c.TrustFile != "", "--trust-file is needed")
	need(c.AgentValidity >= time.Minute, "--agent-cert-validity-secs must be at least 60")
	need(c.FreshnessWindow > 0 && c.ConfirmDeadline > 0, "windows and deadlines must be above zero")
	for name, d := range map[string]time.Duration{
		"freshness-window": c.FreshnessWindow, "confirm-deadline": c.ConfirmDeadline, "agent-cert-validity": c.AgentValidity,
	} {
		need(d <= command.LongestTime, "--%s-secs must be at most %d", name, command.LongestTime/time.Second)
	}
	need(min(c.MaxRate, c.MaxSourceRate) > 0 && max(c.MaxRate, c.MaxSourceRate) <= maxRate, "--max-rate and --max-source-rate must be from 1 to %d", maxRate)
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

// readable also reads and parses the files that must be there at start, and
// changes nothing.
func (c *Config) readable() error {
	var problems []error
	for _, load := range []func() error{
		func() error { _, err := loadServerCertificate(c.TLSCert, c.TLSKey)(); return err },
		func() error { _, err := loadClientCAs(c.ClientCA)(); return err },
		func() error { _, _, err := pki.LoadTrust(c.TrustFile); return err },
		func() error { _, err := c.loadCA(); return err },
	} {
		problems = append(problems, load())
	}
	for _, path := range []string{c.SourceTokenFile, c.WebhookTokenFile, c.ChannelRefs.tokenFile, c.RevocationsSource.tokenFile, c.NoncesSource.tokenFile, c.Rollouts.tokenFile} {
		if path != "" {
			_, err := secretFile(path)
			problems = append(problems, err)
		}
	}
	if c.SourceSSHKeyFile != "" {
		_, err := os.Stat(c.SourceSSHKeyFile)
		problems = append(problems, err)
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

// localFallback: the local pair stands in until the source has given a release.
func (c *Config) localFallback() bool { return c.Source != "" || c.ChannelRefs.given() }

// fleetName is the fleet document's name within the source.
func (c *Config) fleetName() string {
	if c.localFallback() {
		return fleet.FleetName
	}
	return filepath.Base(c.Artifact)
}

// holdsManifests: there is a place to look for manifests by their id.
func (c *Config) holdsManifests() bool {
	return c.Source != "" || c.RolloutsDir != "" || c.Rollouts.given()
}
