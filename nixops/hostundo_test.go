package nixops_test

import (
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

func testUndoTwice(t *testing.T, r *rig) {
	zero := r.installed(t, sim.Closure{})
	one := r.publish("nixos-system-second", sim.Closure{})
	two := r.publish("nixos-system-third", sim.Closure{})
	for _, c := range []string{one, two} {
		must(t, r.host.Realise(t.Context(), c, nil))
		must(t, r.host.SetProfile(t.Context(), c))
		must(t, r.host.RestoreCurrent(t.Context(), c))
	}
	for range 2 {
		must(t, r.host.SetProfile(t.Context(), one))
		must(t, r.host.RestoreCurrent(t.Context(), one))
		r.expect(t, "profile", r.host.Profile, one)
		r.expect(t, "current system", r.host.CurrentSystem, one)
	}
	if zero == one {
		t.Fatal("the three systems are not distinct")
	}
}

func testUndoScript(t *testing.T, r *rig) {
	one := r.installed(t, sim.Closure{})
	bad := r.publish("nixos-system-bad", sim.Closure{Script: sim.Script{ExitCode: 2}})
	must(t, r.host.Realise(t.Context(), bad, nil))
	if exit, err := r.test(t, bad, "switch-1"); err != nil || exit.Meaning() != nixops.MeaningActivation {
		t.Fatalf("switch: %v, %v", exit, err)
	}
	// The bad closure's own script would fail; the one of the recorded path is run.
	if exit, err := r.test(t, one, "undo-1"); err != nil || !exit.OK() {
		t.Errorf("undo: %v, %v", exit, err)
	}
	r.expect(t, "current system", r.host.CurrentSystem, one)
}

func testUndoWithoutChecks(t *testing.T, r *rig) {
	strict := r.publish("nixos-system-strict", sim.Closure{Script: sim.Script{CheckExit: 1}})
	r.install(r.publish("nixos-system-one", sim.Closure{}))
	must(t, r.host.Realise(t.Context(), strict, nil))
	if exit, err := r.test(t, strict, "undo-1"); err != nil || exit.Meaning() != nixops.MeaningRefused {
		t.Errorf("with checks: %v, %v", exit, err)
	}
	r.leaveLists()
	must(t, r.host.ClearSwitchLists(t.Context()))
	must(t, r.host.ClearSwitchLists(t.Context()))
	if exit, err := r.test(t, strict, "undo-2", "NIXOS_NO_CHECK=1"); err != nil || !exit.OK() {
		t.Errorf("without checks: %v, %v", exit, err)
	}
	r.expect(t, "current system", r.host.CurrentSystem, strict)
}

func testCallerDies(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	slow := r.publish("nixos-system-slow", sim.Closure{Script: sim.Script{SwitchTime: 4 * time.Second}})
	must(t, r.host.Realise(t.Context(), slow, nil))
	r.abandon(nixops.SwitchRequest{Closure: slow, Action: nixops.ActionTest, Unit: "switch-1"})
	host := r.reopen()
	if held, err := host.LockHeld(t.Context()); err != nil || !held {
		t.Errorf("lock held by the running switch: %v, %v", held, err)
	}
	state, err := host.SwitchState(t.Context(), "switch-1")
	if err != nil || state.Phase != nixops.UnitRunning {
		t.Fatalf("after the caller's death: %+v, %v", state, err)
	}
	until(t, func() bool {
		state, err = host.SwitchState(t.Context(), "switch-1")
		return err != nil || state.Phase == nixops.UnitFinished
	})
	if err != nil || !state.Exit.OK() {
		t.Errorf("the switch ended with %+v, %v", state, err)
	}
	r.expect(t, "current system", host.CurrentSystem, slow)
	// What it wrote after the death did not go to a pipe of the dead.
	if text, err := host.UnitOutput(t.Context(), "switch-1"); err != nil || !strings.Contains(text, r.output) {
		t.Errorf("output %q, %v", text, err)
	}
}

func testDeadline(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	r.abandonArmed("deadline-1", 4*time.Second)
	host := r.reopen()
	if armed, err := host.DeadlineArmed(t.Context(), "deadline-1"); err != nil || !armed {
		t.Errorf("armed: %v, %v", armed, err)
	}
	if r.fired() {
		t.Fatal("fired at once")
	}
	if state, err := host.SwitchState(t.Context(), "deadline-1"); err != nil || state.Phase != nixops.UnitUnknown {
		t.Errorf("before it fires: %+v, %v", state, err)
	}
	until(t, r.fired)
	until(t, func() bool {
		state, err := host.SwitchState(t.Context(), "deadline-1")
		return err == nil && state.Phase == nixops.UnitFinished && state.Exit.OK()
	})
	if armed, err := host.DeadlineArmed(t.Context(), "deadline-1"); err != nil || armed {
		t.Errorf("still armed: %v, %v", armed, err)
	}
	must(t, host.DisarmDeadline(t.Context(), "deadline-1"))
}

func testDisarm(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	r.abandonArmed("deadline-1", 4*time.Second)
	must(t, r.host.DisarmDeadline(t.Context(), "deadline-1"))
	must(t, r.host.DisarmDeadline(t.Context(), "deadline-1"))
	must(t, r.host.DisarmDeadline(t.Context(), "deadline-never"))
	if armed, err := r.host.DeadlineArmed(t.Context(), "deadline-1"); err != nil || armed {
		t.Errorf("armed: %v, %v", armed, err)
	}
	time.Sleep(5 * time.Second)
	if r.fired() {
		t.Error("fired although disarmed")
	}
	for _, bad := range []nixops.Deadline{
		{Unit: "d", After: time.Second}, {Unit: "d", Command: []string{"/bin/true"}},
		{Unit: "d", After: time.Second, Command: []string{"true"}},
		{Unit: "../d", After: time.Second, Command: []string{"/bin/true"}},
	} {
		if err := r.host.ArmDeadline(t.Context(), bad); err == nil {
			t.Errorf("armed %+v", bad)
		}
	}
}

func testDeadlineNote(t *testing.T, r *rig) {
	r.installed(t, sim.Closure{})
	note := func(unit string) string {
		text, err := r.host.DeadlineNote(t.Context(), unit)
		must(t, err)
		return string(text)
	}
	if got := note("deadline-1") + note(""); got != "" {
		t.Errorf("before there is one: %q", got)
	}
	for i, unit := range []string{"deadline-1", "deadline-2"} {
		must(t, r.host.ArmDeadline(t.Context(), nixops.Deadline{
			Unit: unit, After: time.Hour, Command: []string{"/bin/true"}, Note: []byte{byte('1' + i)},
		}))
		time.Sleep(20 * time.Millisecond) // files have times of their own
	}
	if got := note("deadline-1") + note("deadline-2") + note(""); got != "122" {
		t.Errorf("notes and the newest: %q", got)
	}
	must(t, r.host.DisarmDeadline(t.Context(), "deadline-2"))
	if got := note("deadline-2") + note(""); got != "1" {
		t.Errorf("after one is disarmed: %q", got)
	}
	must(t, r.host.DisarmDeadline(t.Context(), "deadline-1"))
	if _, err := r.host.DeadlineNote(t.Context(), "../deadline"); err == nil {
		t.Error("a path is a unit")
	}
}
