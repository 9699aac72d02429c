package cp

import (
	"cmp"
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
	"nixfleet/roles/cp/source"
)

// Config is the configuration of a control plane. Durations of zero mean the
// default.
type Config struct {
	Listen            string
	Listener          net.Listener // used instead of Listen when set
	PageListen        string       // where the page for browsers is served; empty for nowhere
	PageListener      net.Listener // used instead of PageListen when set
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
	ChannelRefs       source.Pair
	RevocationsSource source.Pair
	NoncesSource      source.Pair
	Rollouts          source.Pair // URL templates with {rolloutId}
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
	WithoutHeads      bool // accept one release without heads after one with them
	LegacyHosts       []string
	OpenReads         bool // agents may read the fleet-wide views
	MaxHeld           int
	MaxAnonymous      int
	MaxHandshakes     int
	MaxRate           int // requests a second of one host, a minute's worth at once
	MaxSourceRate     int // requests a second with a token only from one address, five seconds' worth at once
	Notify            NotifyConfig
	Version           string
	// Reload asks for a look at all files and at the source; nil for never.
	Reload <-chan os.Signal
	// Jitter is a random time below its argument; the default is fair.
	Jitter func(time.Duration) time.Duration
	// Woken is called before the held check-in of a host that was woken looks again; nil for nothing. Where the order of
	// what happens at one moment is to be known, it waits.
	Woken func(host string)
	// Log should write JSON lines; operators match on its messages.
	Log zerolog.Logger
}

const (
	defaultStateDir = "/var/lib/nixfleet-cp"
	maxPollInterval = 60 * time.Second
	maxRate         = 1_000_000 // requests per second, which bounds nobody
)

// complete fills in defaults and finds what cannot work, all of it at once.
func (c *Config) complete() error {
	c.defaults()
	_, err := c.source()
	return errors.Join(c.required(), c.bounds(), c.together(), c.Notify.check(), err)
}

// defaults fills in what was not given.
func (c *Config) defaults() {
	if c.StateDir == "" {
		c.StateDir = defaultStateDir
		if c.DBPath != "" {
			c.StateDir = filepath.Dir(c.DBPath)
		}
	}
	c.AuditLog = cmp.Or(c.AuditLog, filepath.Join(c.StateDir, "issuance.log"))
	c.ReleaseDir = cmp.Or(c.ReleaseDir, "releases")
	if c.PollInterval <= 0 || c.PollInterval > maxPollInterval {
		c.PollInterval = maxPollInterval
	}
	c.FreshnessWindow = cmp.Or(c.FreshnessWindow, 30*24*time.Hour)
	c.ConfirmDeadline = cmp.Or(c.ConfirmDeadline, 360*time.Second)
	c.CheckinInterval = cmp.Or(c.CheckinInterval, 60*time.Second)
	c.AgentValidity = cmp.Or(c.AgentValidity, 30*24*time.Hour)
	if c.Jitter == nil {
		c.Jitter = rand.N[time.Duration]
	}
	if c.Woken == nil {
		c.Woken = func(string) {}
	}
	c.MaxHeld = cmp.Or(c.MaxHeld, 100_000)
	c.MaxAnonymous = cmp.Or(c.MaxAnonymous, 256)
	c.MaxHandshakes = cmp.Or(c.MaxHandshakes, 256)
	c.MaxRate = cmp.Or(c.MaxRate, 20)
	c.MaxSourceRate = cmp.Or(c.MaxSourceRate, 50)
}

// demand is something that a configuration must satisfy.
type demand struct {
	met  bool
	text string
}

// unmet joins the texts of the demands that are not met.
func unmet(demands ...demand) error {
	var problems []error
	for _, d := range demands {
		if !d.met {
			problems = append(problems, errors.New(d.text))
		}
	}
	return errors.Join(problems...)
}

// required is what must be given.
func (c *Config) required() error {
	return unmet(
		demand{c.TLSCert != "" && c.TLSKey != "", "--tls-cert and --tls-key are needed: nixfleet keygen server makes both"},
		demand{c.AgentSuffix != "", "--agent-cn-suffix is needed: the suffix given to nixfleet keygen"},
		demand{c.TrustFile != "", "--trust-file is needed"},
		demand{
			c.Source != "" || c.ChannelRefs.Given() || c.Artifact != "",
			"no source of releases: give --source, or --artifact and --signature, or the channel-refs URLs",
		},
	)
}

// bounds are those of numbers.
func (c *Config) bounds() error {
	const most = command.LongestTime
	longest := fmt.Sprintf("-secs must be at most %d", most/time.Second)
	return unmet(
		demand{c.AgentValidity >= time.Minute, "--agent-cert-validity-secs must be at least 60"},
		demand{c.FreshnessWindow > 0 && c.ConfirmDeadline > 0, "windows and deadlines must be above zero"},
		demand{c.FreshnessWindow <= most, "--freshness-window" + longest},
		demand{c.ConfirmDeadline <= most, "--confirm-deadline" + longest},
		demand{c.AgentValidity <= most, "--agent-cert-validity" + longest},
		demand{
			min(c.MaxRate, c.MaxSourceRate) > 0 && max(c.MaxRate, c.MaxSourceRate) <= maxRate,
			fmt.Sprintf("--max-rate and --max-source-rate must be from 1 to %d", maxRate),
		},
	)
}

// together is what goes only with something else.
func (c *Config) together() error {
	lists := c.RevocationsSource.Given() && c.NoncesSource.Given()
	return errors.Join(
		c.ChannelRefs.Check("channel-refs"), c.RevocationsSource.Check("revocations"),
		c.NoncesSource.Check("bootstrap-nonces"),
		unmet(
			demand{(c.Artifact == "") == (c.Signature == ""), "--artifact and --signature are given together"},
			demand{(c.TPMPubkey == "") == (c.TPMWrapper == ""),
				"--tpm-ca-pubkey-raw and --tpm-ca-sign-wrapper are given together"},
			demand{
				!c.Rollouts.Given() || strings.Contains(c.Rollouts.Artifact, "{rolloutId}") &&
					strings.Contains(c.Rollouts.Signature, "{rolloutId}"),
				"both rollouts-source URL templates must contain {rolloutId}",
			},
			demand{!c.RevocationsSource.Given() || c.DBPath != "", "revocation URLs need --db-path"},
			demand{c.PageListen == "" || c.ClientCA != "", "--page-listen needs --client-ca: the page is for operators"},
			demand{!c.Strict || c.ClientCA != "", "--strict needs --client-ca"},
			demand{!c.Strict || c.Source != "" || lists, "--strict needs the revocations and bootstrap-nonces URLs"},
		),
	)
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
	for _, path := range append(c.Notify.secrets(), c.SourceTokenFile, c.WebhookTokenFile, c.ChannelRefs.TokenFile,
		c.RevocationsSource.TokenFile, c.NoncesSource.TokenFile, c.Rollouts.TokenFile) {
		if path != "" {
			_, err := source.Secret(path)
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
func (c *Config) source() (source.Source, error) {
	switch {
	case strings.HasPrefix(c.Source, "git+"):
		return source.NewGit(source.GitConfig{
			URL: c.Source, ReleaseDir: c.ReleaseDir, Mirror: filepath.Join(c.StateDir, "source.git"),
			TokenFile: c.SourceTokenFile, SSHKeyFile: c.SourceSSHKeyFile, KnownHosts: c.SourceKnownHosts,
		})
	case strings.Contains(c.Source, "://"):
		return nil, fmt.Errorf("--source %q: use git+https://, git+ssh://, git+file:// or a directory", c.Source)
	case c.Source != "":
		return source.NewDir(c.Source), nil
	case c.ChannelRefs.Given():
		return source.NewHTTP(source.HTTPConfig{Fleet: c.ChannelRefs, Revocations: c.RevocationsSource,
			Nonces: c.NoncesSource}), nil
	}
	return source.NewFiles(c.Artifact, c.Signature), nil
}

// localFallback reports whether the local pair is used until the source has given a
// release.
func (c *Config) localFallback() bool { return c.Source != "" || c.ChannelRefs.Given() }

// fleetName is the fleet document's name within the source.
func (c *Config) fleetName() string {
	if c.localFallback() {
		return fleet.FleetName
	}
	return filepath.Base(c.Artifact)
}

// holdsManifests reports whether there is a place to look for manifests by their id.
func (c *Config) holdsManifests() bool {
	return c.Source != "" || c.RolloutsDir != "" || c.Rollouts.Given()
}
