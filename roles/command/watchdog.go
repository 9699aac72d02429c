package command

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells systemd, where there is one, that the service does its work.
func Ready() { notify(daemon.SdNotifyReady) }

// Stopping tells systemd, where there is one, that the service ends.
func Stopping() { notify(daemon.SdNotifyStopping) }

func notify(state string) {
	// Without systemd there is nobody to tell and no error worth a word.
	_, _ = daemon.SdNotify(false, state)
}

// Watchdog tells systemd's watchdog, until ctx ends, that the service lives as
// long as alive says so. Without a watchdog it returns at once.
func Watchdog(ctx context.Context, alive func() bool) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if alive() {
				notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}
