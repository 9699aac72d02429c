package nixops_test

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

// stubBootctl stands for bootctl(1): it writes the variable that the loader would
// read, with its attributes and in UTF-16. A real loader and its firmware are not run here.
const stubBootctl = `#!/bin/sh
[ "$1" = set-oneshot ] && [ $# = 2 ] || { echo "Unknown operation" >&2; exit 1; }
variable=$NIXFLEET_ROOT/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
[ -n "$2" ] || { rm -f "$variable"; exit 0; }
{ printf '\007\000\000\000'; printf %s "$2" | iconv -t UTF-16LE; printf '\000\000'; } >"$variable"
`

func testActiveState(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	mixed := r.publish("nixos-system-mixed",
		sim.Closure{After: sim.After{FailedUnits: []string{"bad.service"}, Inactive: []string{"idle.service"}}})
	must(t, r.host.Realise(t.Context(), mixed, nil))
	if exit, err := r.test(t, mixed, "switch-1"); err != nil || exit.Meaning() != nixops.MeaningUnits {
		t.Fatalf("switch: %v, %v", exit, err)
	}
	for unit, want := range map[string]string{"bad.service": "failed", "idle.service": "inactive",
		"good.service": "active"} {
		if state, err := r.host.ActiveState(t.Context(), unit); err != nil || state != want {
			t.Errorf("%s is %q, %v; want %q", unit, state, err, want)
		}
	}
	for _, bad := range []string{"", "-x", "a b.service", "../x", "*"} {
		if state, err := r.host.ActiveState(t.Context(), bad); err == nil {
			t.Errorf("unit %q is %q", bad, state)
		}
	}
}

func testBootOnce(t *testing.T, r *rig) {
	ctx := t.Context()
	one := r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two", sim.Closure{})
	must(t, r.host.Realise(ctx, two, nil))
	r.bootsOnce(false)
	if can, err := r.host.CanBootOnce(ctx); err != nil || can {
		t.Errorf("a loader that cannot boot once: %v, %v", can, err)
	}
	r.bootsOnce(true)
	if can, err := r.host.CanBootOnce(ctx); err != nil || !can {
		t.Errorf("a loader that can boot once: %v, %v", can, err)
	}
	// Without an entry there is nothing to boot.
	if err := r.host.SetBootOnce(ctx, two); !errors.Is(err, nixops.ErrNotFound) {
		t.Errorf("boot once without an entry: %v", err)
	}
	for range 2 {
		must(t, r.host.SetStaged(ctx, two))
	}
	// The previous closure's own installer writes the entry and stays the default.
	if exit, err := r.host.Switch(ctx,
		nixops.SwitchRequest{Closure: one, Action: nixops.ActionBoot, Unit: "boot-1"}); err != nil || !exit.OK() {
		t.Fatalf("boot: %v, %v", exit, err)
	}
	for range 2 {
		must(t, r.host.SetBootOnce(ctx, two))
	}
	r.expect(t, "boots once", r.reopen().BootOnce, two)
	r.expect(t, "boot default", r.host.BootDefault, one)
	r.expect(t, "profile", r.host.Profile, one)
	r.expect(t, "current system", r.host.CurrentSystem, one)
	// The profile alone keeps the closure from the collector.
	must(t, r.host.RemoveRoot(ctx, two))
	r.gc()
	if _, err := r.host.Inspect(ctx, two); err != nil {
		t.Errorf("collected although staged: %v", err)
	}
	for range 2 {
		must(t, r.host.SetBootOnce(ctx, ""))
		must(t, r.host.SetStaged(ctx, ""))
	}
	r.expect(t, "boots once", r.host.BootOnce, "")
	r.gc()
	if _, err := r.host.Inspect(ctx, two); !errors.Is(err, nixops.ErrNotClosure) {
		t.Errorf("still there after it was dropped: %v", err)
	}
}

func testCalendar(t *testing.T, r *rig) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("no systemd-analyze")
	}
	friday := time.Date(2026, 11, 27, 22, 0, 0, 0, time.UTC)
	for calendar, want := range map[string]time.Time{
		"Sun 03:00 UTC":     time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC),
		"Mon,Sat 22:30 UTC": time.Date(2026, 11, 28, 22, 30, 0, 0, time.UTC),
		"22:00 UTC":         time.Date(2026, 11, 28, 22, 0, 0, 0, time.UTC), // after, not at
		"23:15 UTC":         time.Date(2026, 11, 27, 23, 15, 0, 0, time.UTC),
		"hourly":            time.Date(2026, 11, 27, 23, 0, 0, 0, time.UTC),
	} {
		if next, err := r.host.NextElapse(t.Context(), calendar, friday); err != nil || !next.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", calendar, next, err, want)
		}
	}
	for _, bad := range []string{"", "whenever", "25:00", "--help", "Sun 03:00; reboot"} {
		if next, err := r.host.NextElapse(t.Context(), bad, friday); !errors.Is(err, nixops.ErrCalendar) {
			t.Errorf("%q: %v, %v", bad, next, err)
		}
	}
}
