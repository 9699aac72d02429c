package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/roles/command"
)

// Config is the configuration of an agent. Durations of zero mean the default.
type Config struct {
	URL             string // of the control plane
	MachineID       string
	TrustFile       string
	CACert          string
	ClientCert      string
	ClientKey       string
	SSHHostKey      string
	TokenFile       string
	StateDir        string
	ComplianceMode  string // auto, disabled, permissive or enforce
	HealthChecks    string // file
	RenewalFraction float64
	PollInterval    time.Duration
	SettleTime      time.Duration
	MaxManifestAge  time.Duration // under a v1 control plane
	AllowV1         bool
	AllowRollback   bool // remote rollback without a head
	AllowVolatile   bool
	AgentOutside    bool // the agent is not a part of the closures: tests and demo
	DeferOn         []string
	RebootPolicy    string
	MetricsFile     string        // for a textfile collector; empty: none
	PrefetchSpread  time.Duration // over which closures are fetched ahead; 0: not at all
	Version         string
	Host            nixops.Host
	Dial            func(ctx context.Context, network, addr string) (net.Conn, error)
	ActsPoll        time.Duration // how often notes of root's acts are looked for
	// Clock is the machine's own; the default is time.Now. What it says is never
	// taken for longer or shorter than time really runs.
	Clock func() time.Time
	// Jitter is a random time below its argument; the default is fair.
	Jitter func(time.Duration) time.Duration
	Log    zerolog.Logger

	// Where the host lives; used to make Host.
	hostConfig  nixops.HostConfig
	simulated   string
	simulatedIn string
}

const (
	defaultStateDir = "/var/lib/nixfleet-agent"
	defaultSettle   = 15 * time.Second
	defaultPoll     = 60 * time.Second
	maxPoll         = 366 * 24 * time.Hour
)

// variables are those of the flags of all commands of the agent.
const variables = "NIXFLEET_AGENT"

func stringFlag(name, def, usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: def, Usage: usage}
}

func boolFlag(name, usage string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Usage: usage}
}

func stateDirFlag() cli.Flag {
	return stringFlag("state-dir", defaultStateDir, "`DIR` of journal, mark and quarantine")
}

// hostFlags say where the host lives; every command that touches it has them.
func hostFlags() []cli.Flag {
	simulated := stringFlag("simulated-host", "", "`DIR` of a simulated host, for demonstrations")
	simulated.Hidden = true
	cache := stringFlag("simulated-cache", "", "`DIR` of its cache")
	cache.Hidden = true
	return []cli.Flag{
		stringFlag("root", "", "`DIR` before every path of the host"),
		stringFlag("supervisor", "", "what runs switches: `KIND` systemd, process or launchd (default: the platform's)"),
		stringFlag("nix-bin-dir", "", "`DIR` of the Nix programs (default: on PATH)"),
		stringFlag("nix-conf-dir", "", "`DIR` of nix.conf (default: Nix's own)"),
		&cli.StringSliceFlag{Name: "substituters", Usage: "`URL` of a cache; when set, only these are asked"},
		&cli.StringSliceFlag{Name: "trusted-public-keys", Usage: "`KEY` of a cache; when set, only these are trusted"},
		simulated, cache,
	}
}

func runFlags() []cli.Flag {
	own := []cli.Flag{
		&cli.StringFlag{Name: "control-plane-url", EnvVars: []string{"NIXFLEET_AGENT_CP_URL"},
			Usage: "base `URL` of the control plane"},
		stringFlag("machine-id", "", "`NAME` of this host in the fleet's declaration"),
		&cli.IntFlag{Name: "poll-interval", Value: 60, Usage: "`SECONDS` between two check-ins"},
		stringFlag("trust-file", "/etc/nixfleet/agent/trust.json", "trust roots `FILE`"),
		stringFlag("ca-cert", "", "CA bundle `FILE` of the control plane; when set, no other CA is trusted"),
		stringFlag("client-cert", "/var/lib/nixfleet/agent-cert.pem",
			"`FILE` of this host's certificate; written at enrolment"),
		stringFlag("client-key", "", "its key `FILE`, PEM or OpenSSH (default: the ssh host key)"),
		stringFlag("ssh-host-key-file", "/etc/ssh/ssh_host_ed25519_key", "`FILE` of the key that signs this host's reports"),
		stringFlag("bootstrap-token-file", "", "`FILE` with the bootstrap token, plain or encrypted to the ssh host key"),
		stringFlag("compliance-gate-mode", "auto",
			"`MODE` auto, disabled, permissive or enforce; the stricter of this and the signed one applies"),
		stringFlag("health-checks-config", "", "`FILE` of health probes"),
		&cli.Float64Flag{Name: "renewal-threshold-fraction", Value: 0.5,
			Usage: "renew when less than this `FRACTION` of the certificate's life is left"},
		&cli.DurationFlag{Name: "settle-time", Value: defaultSettle, Usage: "watch the units this long after a switch"},
		&cli.DurationFlag{Name: "max-manifest-age", Value: 24 * time.Hour,
			Usage: "oldest manifest that is accepted under a v1 control plane"},
		boolFlag("allow-v1-control-plane", "accept answers without signed heads"),
		boolFlag("allow-remote-rollback", "honour a rollback without a signed head"),
		boolFlag("allow-volatile-state", "accept a state directory that a reboot empties"),
		boolFlag("agent-outside-closure", "the agent is not part of the systems it activates"),
		&cli.StringSliceFlag{Name: "defer-on",
			Usage: "`COMPONENT` whose change is staged for the next boot: kernel, initrd, kernel-params, systemd or dbus"},
		stringFlag("reboot-policy", "never", "`POLICY` for staged updates: never, immediate or window:ONCALENDAR"),
		&cli.DurationFlag{Name: "prefetch-spread",
			Usage: "fetch closures before their wave starts, each host at its own time within `DURATION` (default: not at all)"},
		stringFlag("metrics-file", "",
			"`FILE` of metrics for the textfile collector of node_exporter, written while the agent runs (default: none)"),
		stringFlag("log-level", "info", "`LEVEL`: debug, info, warn or error"),
		boolFlag("check-config", "check the configuration and exit; nothing is contacted or written"),
	}
	return command.Variables(variables, append(append(own, stateDirFlag()), hostFlags()...)...)
}

func hostConfigOf(c *cli.Context, log zerolog.Logger) nixops.HostConfig {
	return nixops.HostConfig{
		Root: c.String("root"), Nix: c.String("nix-bin-dir"), NixConfDir: c.String("nix-conf-dir"),
		Substituters: c.StringSlice("substituters"), TrustedPublicKeys: c.StringSlice("trusted-public-keys"),
		Supervisor: c.String("supervisor"), Log: log,
	}
}

func configOf(c *cli.Context, log zerolog.Logger) Config {
	cfg := Config{
		URL: c.String("control-plane-url"), MachineID: c.String("machine-id"), TrustFile: c.String("trust-file"),
		CACert:     c.String("ca-cert"),
		ClientCert: c.String("client-cert"), ClientKey: c.String("client-key"), SSHHostKey: c.String("ssh-host-key-file"),
		TokenFile: c.String("bootstrap-token-file"), StateDir: c.String("state-dir"),
		ComplianceMode:  c.String("compliance-gate-mode"),
		HealthChecks:    c.String("health-checks-config"),
		RenewalFraction: cmp.Or(c.Float64("renewal-threshold-fraction"), -1),
		PollInterval:    command.Seconds(c.Int("poll-interval")), SettleTime: c.Duration("settle-time"),
		MaxManifestAge: c.Duration("max-manifest-age"), AllowV1: c.Bool("allow-v1-control-plane"),
		AllowRollback: c.Bool("allow-remote-rollback"),
		AllowVolatile: c.Bool("allow-volatile-state"), AgentOutside: c.Bool("agent-outside-closure"),
		DeferOn:      c.StringSlice("defer-on"),
		RebootPolicy: c.String("reboot-policy"), MetricsFile: c.String("metrics-file"),
		PrefetchSpread: c.Duration("prefetch-spread"), Version: c.App.Version, Log: log,
		hostConfig: hostConfigOf(c, log), simulated: c.String("simulated-host"), simulatedIn: c.String("simulated-cache"),
	}
	return cfg
}

// complete fills in defaults and finds all that cannot work.
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
	if c.ClientKey == "" {
		c.ClientKey = c.SSHHostKey
	}
	c.PollInterval = cmp.Or(c.PollInterval, defaultPoll)
	c.SettleTime = cmp.Or(c.SettleTime, defaultSettle)
	c.MaxManifestAge = cmp.Or(c.MaxManifestAge, 24*time.Hour)
	c.ActsPoll = cmp.Or(c.ActsPoll, defaultActsPoll)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Jitter == nil {
		c.Jitter = rand.N[time.Duration]
	}
	if c.RenewalFraction == 0 {
		c.RenewalFraction = 0.5
	}
	need(strings.HasPrefix(c.URL, "https://"), "--control-plane-url must be https://host:port, not %q", c.URL)
	need(c.MachineID != "", "--machine-id is needed: the host's name in the fleet's declaration")
	need(c.TrustFile != "", "--trust-file is needed")
	need(c.ClientCert != "" && c.ClientKey != "", "--client-cert and --client-key are needed")
	need(c.RenewalFraction > 0 && c.RenewalFraction < 1, "--renewal-threshold-fraction must be between 0 and 1")
	need(c.PrefetchSpread >= 0 && c.PrefetchSpread <= 24*time.Hour, "--prefetch-spread must be between 0 and 24h")
	need(c.PollInterval >= time.Second && c.PollInterval <= maxPoll, "--poll-interval must be from 1 to %d",
		maxPoll/time.Second)
	switch c.ComplianceMode {
	case "", "auto", "disabled", "permissive", "enforce":
	default:
		need(false, "--compliance-gate-mode %q: use auto, disabled, permissive or enforce", c.ComplianceMode)
	}
	for _, component := range c.DeferOn {
		switch component {
		case "kernel", "initrd", "kernel-params", "systemd", "dbus":
		default:
			need(false, "--defer-on %q: use kernel, initrd, kernel-params, systemd or dbus", component)
		}
	}
	if _, err := parseRebootPolicy(c.RebootPolicy); err != nil {
		problems = append(problems, fmt.Errorf("--reboot-policy: %w", err))
	}
	if _, err := loadProbes(c.HealthChecks); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// hostArguments repeat the host's flags for a command that runs later.
func (c *Config) hostArguments() []string {
	var args []string
	add := func(flag, value string) {
		if value != "" {
			args = append(args, "--"+flag, value)
		}
	}
	add("root", c.hostConfig.Root)
	add("supervisor", c.hostConfig.Supervisor)
	add("nix-bin-dir", c.hostConfig.Nix)
	add("nix-conf-dir", c.hostConfig.NixConfDir)
	add("simulated-host", c.simulated)
	add("simulated-cache", c.simulatedIn)
	return args
}

// makeHost is the real host, or the simulated one of a demonstration.
func (c *Config) makeHost() error {
	if c.Host != nil {
		return nil
	}
	var err error
	if c.simulated != "" {
		c.Host, err = sim.New(c.simulated, c.simulatedIn)
	} else {
		c.Host, err = nixops.NewHost(c.hostConfig)
	}
	return err
}

// volatileState refuses to keep state or certificate where a reboot empties it: both
// and the used token would be lost, and the host locked out.
func (c *Config) volatileState() error {
	if c.AllowVolatile {
		return nil
	}
	if err := lasts("state directory", c.StateDir); err != nil {
		return err
	}
	return lasts("certificate directory", filepath.Dir(c.ClientCert))
}

func lasts(what, path string) error {
	dir := path
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	volatile, kind, err := nixops.Volatile(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if volatile {
		return &command.Error{Err: fmt.Errorf("%s %s is on %s and does not survive a reboot", what, path, kind),
			Hint: "keep it on a disk, or give --allow-volatile-state"}
	}
	return nil
}
