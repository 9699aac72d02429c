package nixops

import (
	"strings"
	"testing"
	"time"
)

// Who brings a unit is read from its file and its name.
func TestOriginOfUnits_A32(t *testing.T) {
	const etc = "/etc/systemd/system/"
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		name, fragment, source string
		declared, transient    bool
	}{
		{"nginx.service", etc + "nginx.service", "", true, false},
		{"getty@tty1.service", etc + "getty@.service", "", true, false},
		{"srv-data.mount", etc + "srv-data.mount", "", true, false},
		{"srv-data.mount", "/run/systemd/generator/srv-data.mount", "/etc/fstab", true, false},
		{"dev-sda2.swap", "/run/systemd/generator/dev-sda2.swap", "/etc/fstab", true, false},
		{"media-stick.mount", "", "", false, false},
		{"media-stick.mount", "", "/proc/self/mountinfo", false, false},
		{"boot.automount", "/run/systemd/generator.late/boot.automount", "/proc/cmdline", false, false},
		{"dev-sda.device", "", "", false, false},
		{"podman.service", "/run/systemd/system/podman.service", "", false, false},
		{"backup.service", transientDir + "backup.service", "", false, true},
		{id + "-3f0a1b2c3d4e5f60.service", transientDir + id + "-3f0a1b2c3d4e5f60.service", "", false, true},
		{id + "-3f0a1b2c3d4e5f60.timer", "", "", false, true},
		{"9f86d081884c7d65-0011223344556677.service", etc + "9f86d081884c7d65-0011223344556677.service", "", false, true},
		{"run-r0123456789abcdef0123456789abcdef.service", "", "", false, true},
		{"run-u42.service", "", "", false, true},
		{"run-secrets.d.mount", etc + "run-secrets.d.mount", "", true, false},
		{"session-3.scope", transientDir + "session-3.scope", "", false, true},
		{"init.scope", "", "", false, false},
		{"user@1000.service", etc + "user@.service", "", false, false},
		{"user-runtime-dir@1000.service", etc + "user-runtime-dir@.service", "", false, false},
		{"user-1000.slice", "", "", false, false},
		{"deadbeef.service", etc + "deadbeef.service", "", true, false},
		{"gone.service", "", "", false, false},
	} {
		if declared, transient := origin(c.name, c.fragment, c.source); declared != c.declared || transient != c.transient {
			t.Errorf("%s of %q, from %q: declared %v, transient %v", c.name, c.fragment, c.source, declared, transient)
		}
	}
}

// A release is blamed only for what it did.
func TestReleaseIsBlamedForItsUnitsOnly_A4_A24_A32(t *testing.T) {
	const up = time.Hour
	began := time.Now()
	for name, c := range map[string]struct {
		before, first, later Unit
		blamed               bool
	}{
		"a declared unit fails": {Unit{}, Unit{Declared: true, Failed: true}, Unit{Declared: true, Failed: true}, true},
		"it fails later": {Unit{Declared: true, Active: true}, Unit{Declared: true, Active: true},
			Unit{Declared: true, Failed: true}, true},
		"it had failed before": {Unit{Declared: true, Failed: true}, Unit{Declared: true, Failed: true},
			Unit{Declared: true, Failed: true}, false},
		"a made-up name":       {Unit{}, Unit{Transient: true, Failed: true}, Unit{Transient: true, Failed: true}, false},
		"no closure brings it": {Unit{}, Unit{Failed: true}, Unit{Failed: true}, false},
		"no closure brings it, and it ran before": {
			Unit{Active: true}, Unit{Active: true}, Unit{Failed: true}, true,
		},
		"a crash loop": {
			Unit{Declared: true, Active: true}, Unit{Declared: true}, Unit{Declared: true, Restarts: 3}, true,
		},
		"one restart": {
			Unit{Declared: true, Active: true}, Unit{Declared: true, Active: true},
			Unit{Declared: true, Active: true, Restarts: 1}, true,
		},
		"it ends well and starts again": {
			Unit{Declared: true, Active: true}, Unit{Declared: true}, Unit{Declared: true, Restarts: 7, EndsWell: true}, false,
		},
		"it crashed as often before, for an hour": {
			Unit{Declared: true, Active: true, Restarts: 1800}, Unit{Declared: true}, Unit{Declared: true, Restarts: 7}, false,
		},
		"it crashed as often before, for ten seconds": {
			Unit{Declared: true, Active: true, Restarts: 5, Age: time.Second}, Unit{Declared: true},
			Unit{Declared: true, Restarts: 7}, false,
		},
		"it crashed as often before, and waits when it is looked at": {
			Unit{Declared: true, Active: true, Restarts: 1800}, Unit{Declared: true, Failed: true},
			Unit{Declared: true, Failed: true, Restarts: 7}, false,
		},
		"it crashed once an hour before": {
			Unit{Declared: true, Active: true, Restarts: 1, Age: up - time.Minute}, Unit{Declared: true},
			Unit{Declared: true, Restarts: 7}, true,
		},
		"it ended well before and crashes now": {
			Unit{Declared: true, Active: true, Restarts: 1800, EndsWell: true}, Unit{Declared: true},
			Unit{Declared: true, Restarts: 7}, true,
		},
		// The switch's own reset-failed sets the count back.
		"counted anew": {
			Unit{Declared: true, Active: true, Restarts: 1800}, Unit{Declared: true, Restarts: 1800},
			Unit{Declared: true, Restarts: 2}, false,
		},
	} {
		for _, u := range []*Unit{&c.before, &c.first, &c.later} {
			u.Name = "a.service"
		}
		w := NewBaseline([]Unit{c.before}, up).Watch(began)
		trouble := w.Look([]Unit{c.first}, began)
		if trouble == "" {
			trouble = w.Look([]Unit{c.later}, began.Add(15*time.Second))
		}
		if (trouble != "") != c.blamed || c.blamed && !strings.Contains(trouble, "a.service") {
			t.Errorf("%s: %q", name, trouble)
		}
	}
}
