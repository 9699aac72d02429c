package nixops

import (
	"github.com/rs/zerolog"
)

// How a real host runs what must outlive its caller.
const (
	SupervisorSystemd = "systemd" // transient units and timers of PID 1
	SupervisorProcess = "process" // detached processes: containers, tests, demo
	SupervisorLaunchd = "launchd" // macOS
)

// HostConfig says where things are. The zero value is this machine with systemd
// and the Nix on PATH.
type HostConfig struct {
	// Root is put before every path (store, profiles, /run, /boot), so that a whole
	// host fits under one directory. "" is the machine itself.
	Root string
	// Nix is the directory of the Nix binaries; "" looks on PATH.
	Nix string
	// NixConfDir, if set, is NIX_CONF_DIR of every Nix command.
	NixConfDir string
	// Substituters and TrustedPublicKeys are pinned: Nix asks and believes no other,
	// whatever nix.conf says. Nil leaves the machine's configuration.
	Substituters      []string
	TrustedPublicKeys []string
	// Supervisor is one of the constants above; "" is the platform's own.
	Supervisor string
	// RunDir holds exit codes and output of units since boot; "" is
	// /run/nixfleet below Root.
	RunDir string
	// Bootctl is the program that chooses the entry of one boot; "" is bootctl.
	Bootctl string
	// Launchctl is the program that manages launchd's jobs; "" is launchctl.
	Launchctl string
	Log       zerolog.Logger
}
