package nixops

import (
	"github.com/rs/zerolog"
)

// The supervisors by which a real host runs what must outlive its caller.
const (
	SupervisorSystemd = "systemd" // transient units and timers of PID 1
	SupervisorProcess = "process" // detached processes: containers, tests, demo
	SupervisorLaunchd = "launchd" // macOS
)

// HostConfig describes a real host. The zero value describes this machine, with its own supervisor and the Nix on PATH.
type HostConfig struct {
	// Root is the directory before every path (store, profiles, /run, /boot), so that a whole host fits below
	// one directory. "" means the machine itself.
	Root string
	// Nix is the directory of the Nix binaries; "" means PATH.
	Nix string
	// NixConfDir, if set, is NIX_CONF_DIR of every Nix command.
	NixConfDir string
	// Substituters and TrustedPublicKeys are pinned: Nix asks only these caches and trusts only these keys,
	// whatever nix.conf says. Nil keeps what the machine's configuration says.
	Substituters      []string
	TrustedPublicKeys []string
	// Supervisor is one of the constants above; "" means the one that the machine has.
	Supervisor string
	// RunDir holds the exit codes and the output of units since the boot; "" means /run/nixfleet below Root.
	RunDir string
	// Bootctl is the program that chooses the entry for one boot; "" means bootctl.
	Bootctl string
	// Launchctl is the program that manages launchd's jobs; "" means launchctl.
	Launchctl string
	Log       zerolog.Logger
}
