package nixops

import (
	"context"
	"fmt"

	"nixfleet/nixops/loader"
)

// ThisBoot says how far the boot has come that the machine runs in.
type ThisBoot struct {
	Over     bool     // systemd has reached its default target; true where there is no such target
	Blessing Blessing // of the entry that the boot loader started
	Why      string   // that is not blessed, in words
}

// Blessing says whether systemd-bless-boot has taken the boot counter from the entry that was booted.
type Blessing string

// The kinds of Blessing.
const (
	NotToBless     Blessing = ""        // the boot loader does not count this boot, or nothing here blesses boots
	BlessingWaits  Blessing = "waits"   // for boot-complete.target
	Blessed        Blessing = "blessed" // the loader starts the entry from now on without counting
	BlessingFailed Blessing = "failed"  // the loader goes on counting
)

// The units of systemd that a blessing needs (systemd-bless-boot.service(8)).
const (
	defaultTarget = "default.target"
	blessUnit     = "systemd-bless-boot.service"
	completeUnit  = "boot-complete.target"
)

// ThisBoot looks at the file of the entry that was booted. Where it still has its counter, systemd says whether that
// is still to change.
func (m *machine) ThisBoot(ctx context.Context) (ThisBoot, error) {
	if m.platform != "linux" {
		return ThisBoot{Over: true}, nil
	}
	target, err := m.ActiveState(ctx, defaultTarget)
	if err != nil {
		return ThisBoot{}, err
	}
	boot := ThisBoot{Over: target == "active" || target == "not-found"}
	blessing, file := loader.ReadVariables(m.root).Blessing(m.root)
	switch blessing {
	case loader.NotToBless:
		return boot, nil
	case loader.Blessed:
		boot.Blessing = Blessed
		return boot, nil
	}
	unit, err := m.ActiveState(ctx, blessUnit)
	if err != nil {
		return ThisBoot{}, err
	}
	complete, err := m.ActiveState(ctx, completeUnit)
	if err != nil {
		return ThisBoot{}, err
	}
	seen := file + " still has its boot counter"
	if blessing == loader.BlessUnknown {
		seen = file + " is on no partition that is mounted"
	}
	switch unit {
	case "not-found":
		boot.Why = fmt.Sprintf("%s, and this system has no %s", seen, blessUnit)
	case "failed":
		boot.Blessing, boot.Why = BlessingFailed, fmt.Sprintf("%s, and %s failed", seen, blessUnit)
	case "active":
		// It stays active after it has run.
		boot.Blessing, boot.Why = BlessingFailed, fmt.Sprintf("%s, although %s ended well", seen, blessUnit)
	default:
		boot.Blessing = BlessingWaits
		boot.Why = fmt.Sprintf("%s is %s, and %s is %s", blessUnit, unit, completeUnit, complete)
	}
	return boot, nil
}
