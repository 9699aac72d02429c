package nixops_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/nixops/testnix"
)

// contract is what both machines promise.
var contract = []struct {
	name string
	test func(t *testing.T, r *rig)
}{
	{"switch", testSwitch},
	{"exit codes A3", testExitCodes},
	{"failing units before and after A4", testFailedUnits},
	{"crash loop is seen A24", testCrashLoop},
	{"boot default comes last A10 A11", testBootDefault},
	{"undo twice is a no-op A6", testUndoTwice},
	{"undo runs the previous script A7", testUndoScript},
	{"undo passes the previous checks A23", testUndoWithoutChecks},
	{"root outlives the collector A13", testRoots},
	{"lock held is try again A5", testLock},
	{"caller dies in the switch A1 A2", testCallerDies},
	{"deadline without its caller A9", testDeadline},
	{"disarmed deadline", testDisarm},
	{"note of a deadline", testDeadlineNote},
	{"unit names are used once at a time", testUnitNames},
	{"refused closures", testRefused},
	{"cache gone", testUnreachable},
	{"inspect", testInspect},
	{"stop a switch", testStop},
	{"state of a unit", testActiveState},
	{"boot once A10 A11", testBootOnce},
	{"calendar", testCalendar},
	{"compliance evidence", testEvidence},
}

func TestSimulatedHost(t *testing.T) {
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.test(t, newSimRig(t)) })
		})
	}
}

func TestRealHost(t *testing.T) {
	nix := testnix.Find(t)
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, newRealRig(t, nix, func(*nixops.HostConfig) {}))
		})
	}
}

// The variant for macOS, with a stand-in for launchctl: what only launchd and
// nix-darwin do is not run here.
func TestRealHostUnderLaunchd(t *testing.T) {
	nix := testnix.Find(t)
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("the stand-in for launchctl needs python3")
	}
	script, err := os.ReadFile("testdata/launchctl")
	must(t, err)
	for _, c := range contract {
		// The rest does not ask launchd, which counts no restarts either.
		if !slices.Contains([]string{
			"switch", "exit codes A3", "failing units before and after A4", "lock held is try again A5",
			"caller dies in the switch A1 A2", "deadline without its caller A9", "disarmed deadline",
			"unit names are used once at a time", "stop a switch", "state of a unit",
		}, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, newRealRig(t, nix, func(h *nixops.HostConfig) {
				dir := t.TempDir()
				h.Supervisor, h.Launchctl = nixops.SupervisorLaunchd, filepath.Join(dir, "launchctl")
				must(t, os.WriteFile(h.Launchctl, script, 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "root"), []byte(h.Root), 0o644))
			}))
		})
	}
}

func testSwitch(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two", sim.Closure{})
	var said []string
	must(t, r.host.Realise(t.Context(), two, func(line string) { said = append(said, line) }))
	if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, two) }) {
		t.Errorf("progress says nothing of the path: %q", said)
	}
	exit, err := r.test(t, two, "nixfleet-switch-1")
	if err != nil || exit.Meaning() != nixops.MeaningDone {
		t.Fatalf("switch: %v, %v", exit, err)
	}
	r.expect(t, "current system", r.host.CurrentSystem, two)
	r.expect(t, "profile", r.host.Profile, one)
	r.expect(t, "boot default", r.host.BootDefault, one)
	state, err := r.reopen().SwitchState(t.Context(), "nixfleet-switch-1")
	if err != nil || state.Phase != nixops.UnitFinished || !state.Exit.OK() {
		t.Errorf("a later process sees %+v, %v", state, err)
	}
	text, err := r.host.UnitOutput(t.Context(), "nixfleet-switch-1")
	if err != nil || !strings.Contains(text, r.output) {
		t.Errorf("output %q, %v", text, err)
	}
	if state, err := r.host.SwitchState(t.Context(), "nixfleet-switch-9"); err != nil ||
		state.Phase != nixops.UnitUnknown {
		t.Errorf("a unit that never was: %+v, %v", state, err)
	}
}

func testExitCodes(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	for code, want := range map[int]nixops.Meaning{
		1: nixops.MeaningRefused, 2: nixops.MeaningActivation, 4: nixops.MeaningUnits,
		100: nixops.MeaningReboot, 101: nixops.MeaningDied, 7: nixops.MeaningDied,
	} {
		closure := r.publish(fmt.Sprintf("nixos-system-exit-%d", code), sim.Closure{Script: sim.Script{ExitCode: code}})
		must(t, r.host.Realise(t.Context(), closure, nil))
		exit, err := r.test(t, closure, fmt.Sprintf("switch-%d", code))
		if err != nil || exit.Code != code || exit.Meaning() != want || exit.OK() {
			t.Errorf("exit %d: %+v (%s), %v", code, exit, exit.Meaning(), err)
		}
		must(t, r.host.RestoreCurrent(t.Context(), one))
	}
	locked := r.publish("nixos-system-exit-11", sim.Closure{Script: sim.Script{ExitCode: 11}})
	must(t, r.host.Realise(t.Context(), locked, nil))
	if exit, err := r.test(t, locked, "switch-11"); !errors.Is(err, nixops.ErrLockHeld) ||
		exit.Meaning() != nixops.MeaningLocked {
		t.Errorf("exit 11: %v, %v", exit, err)
	}
}

func testFailedUnits(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	before := r.publish("nixos-system-before", sim.Closure{After: sim.After{FailedUnits: []string{"old.service"}}})
	after := r.publish("nixos-system-after",
		sim.Closure{After: sim.After{FailedUnits: []string{"old.service", "new.service"}}})
	must(t, r.host.Realise(t.Context(), before, nil))
	must(t, r.host.Realise(t.Context(), after, nil))
	for i, closure := range []string{before, after} {
		exit, err := r.test(t, closure, fmt.Sprint("switch-", i))
		if err != nil || exit.Meaning() != nixops.MeaningUnits {
			t.Fatalf("switch: %v, %v", exit, err)
		}
		failed, err := r.failed(t)
		want := [][]string{{"old.service"}, {"new.service", "old.service"}}[i]
		if err != nil || !slices.Equal(failed, want) {
			t.Errorf("failed units %q, %v; want %q", failed, err, want)
		}
	}
}

func testCrashLoop(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	loop := r.publish("nixos-system-loop",
		sim.Closure{After: sim.After{CrashLoop: []string{"web.service"}, CrashEvery: 100 * time.Millisecond}})
	must(t, r.host.Realise(t.Context(), loop, nil))
	if exit, err := r.test(t, loop, "switch-1"); err != nil || !exit.OK() {
		t.Fatalf("switch: %v, %v", exit, err)
	}
	time.Sleep(200 * time.Millisecond)
	units, err := r.host.Units(t.Context())
	if err != nil || !slices.ContainsFunc(units,
		func(u nixops.Unit) bool { return u.Name == "web.service" && u.Restarts > 0 && !u.EndsWell }) {
		t.Errorf("units %+v, %v", units, err)
	}
	if failed, err := r.failed(t); err != nil || len(failed) != 0 {
		t.Errorf("a crash loop shows as failed: %v, %v", failed, err)
	}
}

func testBootDefault(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two", sim.Closure{})
	full := r.publish("nixos-system-full", sim.Closure{Script: sim.Script{BootExit: 1}})
	for _, c := range []string{two, full} {
		must(t, r.host.Realise(t.Context(), c, nil))
	}
	boot := func(closure, unit string) nixops.Exit {
		exit, err := r.host.Switch(t.Context(), nixops.SwitchRequest{Closure: closure, Action: nixops.ActionBoot, Unit: unit})
		must(t, err)
		return exit
	}
	must(t, r.host.SetProfile(t.Context(), two))
	r.expect(t, "boot default after the profile alone", r.host.BootDefault, one)
	if exit := boot(two, "boot-1"); !exit.OK() {
		t.Errorf("boot: %v", exit)
	}
	r.expect(t, "boot default", r.host.BootDefault, two)
	r.expect(t, "current system", r.host.CurrentSystem, one)
	// [A14] a full /boot is a failure, and the default stays.
	if exit := boot(full, "boot-2"); exit.Meaning() != nixops.MeaningRefused {
		t.Errorf("boot loader failure: %v", exit)
	}
	r.expect(t, "boot default", r.host.BootDefault, two)
}

func testRoots(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two+git", sim.Closure{})
	for _, name := range []string{"", "../x", "a b", "a/b"} {
		if err := r.host.AddRoot(t.Context(), name, two); err == nil {
			t.Errorf("root %q was accepted", name)
		}
	}
	// A root may come before its path, and a collection between the two.
	must(t, r.host.AddRoot(t.Context(), "staged", two))
	r.gc()
	must(t, r.host.Realise(t.Context(), two, nil))
	must(t, r.host.RemoveRoot(t.Context(), "staged"))
	r.gc()
	if _, err := r.host.Inspect(t.Context(), two); err != nil {
		t.Fatalf("collected although realised: %v", err)
	}
	roots, err := r.host.Roots(t.Context())
	if err != nil || roots[two] != two {
		t.Errorf("roots %v, %v", roots, err)
	}
	must(t, r.host.AddRoot(t.Context(), "current", two))
	must(t, r.host.RemoveRoot(t.Context(), two))
	must(t, r.host.RemoveRoot(t.Context(), two))
	r.gc()
	if _, err := r.host.Inspect(t.Context(), two); err != nil {
		t.Fatalf("collected although rooted by name: %v", err)
	}
	must(t, r.host.RemoveRoot(t.Context(), "current"))
	r.gc()
	if _, err := r.host.Inspect(t.Context(), two); !errors.Is(err, nixops.ErrNotClosure) {
		t.Errorf("without a root: %v", err)
	}
	// It comes back from the cache.
	must(t, r.host.Realise(t.Context(), two, nil))
}

func testLock(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two", sim.Closure{})
	must(t, r.host.Realise(t.Context(), two, nil))
	release := r.holdLock()
	held, err := r.host.LockHeld(t.Context())
	if err != nil || !held {
		t.Errorf("lock held: %v, %v", held, err)
	}
	if _, err := r.test(t, two, "switch-1"); !errors.Is(err, nixops.ErrLockHeld) {
		t.Errorf("switch under a held lock: %v", err)
	}
	r.expect(t, "current system", r.host.CurrentSystem, one)
	if !r.lockExists() {
		t.Error("the lock file was deleted")
	}
	release()
	// The file is still there; that means nothing.
	if held, err := r.host.LockHeld(t.Context()); err != nil || held {
		t.Errorf("lock held after release: %v, %v", held, err)
	}
	if exit, err := r.test(t, two, "switch-2"); err != nil || !exit.OK() {
		t.Errorf("switch: %v, %v", exit, err)
	}
	if !r.lockExists() {
		t.Error("the lock file was deleted")
	}
}

// until waits a bounded time.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("waited for a minute")
}

func testUnitNames(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	for _, unit := range []string{"", "../x", "a b", "-x", "a/b", strings.Repeat("a", 200)} {
		if _, err := r.test(t, one, unit); err == nil {
			t.Errorf("unit %q was accepted", unit)
		}
	}
	if _, err := r.host.Switch(t.Context(),
		nixops.SwitchRequest{Closure: one, Action: "rebuild", Unit: "x"}); err == nil {
		t.Error("an action that is none was accepted")
	}
}

func testRefused(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	for kind, want := range map[string]error{
		"unsigned": nixops.ErrUnsigned, "foreign": nixops.ErrUnsigned, "corrupt": nixops.ErrUnsigned, "other-path": nil,
	} {
		closure := r.publish("nixos-system-"+kind, sim.Closure{Cache: sim.Cache{Signature: kind}})
		err := r.host.Realise(t.Context(), closure, nil)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
		// Whatever was unpacked on the way: it is not valid.
		if _, err := r.host.Inspect(t.Context(), closure); !errors.Is(err, nixops.ErrNotClosure) {
			t.Errorf("%s is valid afterwards: %v", kind, err)
		}
		if err := r.host.SetProfile(t.Context(), closure); !errors.Is(err, nixops.ErrNotClosure) {
			t.Errorf("%s became the profile: %v", kind, err)
		}
	}
	missing := "79wqc9mdy0p3ps928658npmkbwf7km19-nixos-system-none"
	if err := r.host.Realise(t.Context(), missing, nil); !errors.Is(err, nixops.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	for _, name := range []string{"", "x", "../etc", "/nix/store/" + missing, missing + "/bin", strings.ToUpper(missing),
		"79wqc9mdy0p3ps928658npmkbwf7km19-"} {
		if err := r.host.Realise(t.Context(), name, nil); !errors.Is(err, nixops.ErrNotClosure) {
			t.Errorf("%q: %v", name, err)
		}
		if err := r.host.RestoreCurrent(t.Context(), name); !errors.Is(err, nixops.ErrNotClosure) {
			t.Errorf("restore %q: %v", name, err)
		}
	}
	bare := r.publish("not-a-system", sim.Closure{NoSwitch: true})
	must(t, r.host.Realise(t.Context(), bare, nil))
	if _, err := r.test(t, bare, "switch-bare"); !errors.Is(err, nixops.ErrNotClosure) {
		t.Errorf("switch to what is not a system: %v", err)
	}
}

func testUnreachable(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	two := r.publish("nixos-system-two", sim.Closure{})
	r.unreachable()
	if err := r.host.Realise(t.Context(), two, nil); !errors.Is(err, nixops.ErrUnreachable) {
		t.Errorf("cache gone: %v", err)
	}
	// What is here already needs no cache.
	must(t, r.host.Realise(t.Context(), one, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.host.Realise(ctx, two, nil); err == nil {
		t.Error("realised without leave")
	}
}

func testInspect(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	agent, err := os.Executable()
	must(t, err)
	rich := sim.Closure{
		Agent: agent, TrustJSON: `{"schemaVersion":1}`, KernelParams: "quiet loglevel=4",
		SwitchInhibitor: `{"dbus":"broker"}`, Version: "25.11.20260301.4f1c0a9",
	}
	closure := r.publish("nixos-system-rich", rich)
	must(t, r.host.Realise(t.Context(), closure, nil))
	c, err := r.host.Inspect(t.Context(), closure)
	must(t, err)
	if c.Name != closure || !c.HasSwitch || string(c.TrustJSON) != rich.TrustJSON || c.KernelParams != rich.KernelParams ||
		c.SwitchInhibitor != rich.SwitchInhibitor || c.Version != rich.Version {
		t.Errorf("inspected %+v", c)
	}
	if want := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC); !c.SourceDate.Equal(want) {
		t.Errorf("source date %v", c.SourceDate)
	}
	if info, err := os.Stat(c.AgentPath); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("agent %q: %v", c.AgentPath, err)
	}
	if ok, err := r.host.SupportsCheck(t.Context(), closure); err != nil || !ok {
		t.Errorf("supports check: %v, %v", ok, err)
	}
	old := r.publish("nixos-system-old", sim.Closure{Script: sim.Script{NoCheck: true}})
	must(t, r.host.Realise(t.Context(), old, nil))
	if ok, err := r.host.SupportsCheck(t.Context(), old); err != nil || ok {
		t.Errorf("an old script supports check: %v, %v", ok, err)
	}
	if bare, err := r.host.Inspect(t.Context(), old); err != nil || bare.AgentPath != "" || bare.TrustJSON != nil {
		t.Errorf("a closure without agent: %+v, %v", bare, err)
	}
	if space, err := r.host.Space(t.Context(), ""); err != nil || space.StoreFree == 0 || space.BootFree == 0 {
		t.Errorf("space %+v, %v", space, err)
	}
	if id, err := r.host.BootID(t.Context()); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}

func testStop(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	slow := r.publish("nixos-system-slow", sim.Closure{Script: sim.Script{SwitchTime: 5 * time.Second}})
	must(t, r.host.Realise(t.Context(), slow, nil))
	r.abandon(nixops.SwitchRequest{Closure: slow, Action: nixops.ActionTest, Unit: "switch-1"})
	must(t, r.host.StopUnit(t.Context(), "switch-1"))
	must(t, r.host.StopUnit(t.Context(), "switch-1"))
	must(t, r.host.StopUnit(t.Context(), "switch-never"))
	state, err := r.host.SwitchState(t.Context(), "switch-1")
	if err != nil || state.Phase != nixops.UnitFinished || state.Exit.OK() ||
		state.Exit.Meaning() != nixops.MeaningKilled {
		t.Errorf("stopped: %+v, %v", state, err)
	}
	until(t, func() bool { held, err := r.host.LockHeld(t.Context()); return err == nil && !held })
	r.expect(t, "current system", r.host.CurrentSystem, one)
	must(t, r.host.ClearSwitchLists(t.Context()))
}
