package sim_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

const (
	simOne = "00000000000000000000000000000001-nixos-system-one"
	simTwo = "00000000000000000000000000000002-nixos-system-two"
)

// simulated is a machine with simOne installed and simTwo realised.
func simulated(t *testing.T, one, two sim.Closure) (box *sim.Host, dir, cache string) {
	t.Helper()
	dir, cache = t.TempDir(), t.TempDir()
	must(t, sim.WriteClosure(cache, simOne, one))
	must(t, sim.WriteClosure(cache, simTwo, two))
	box, err := sim.New(dir, cache)
	must(t, err)
	t.Cleanup(func() { box.Close() })
	must(t, box.Install(simOne))
	must(t, box.Realise(t.Context(), simTwo, nil))
	return box, dir, cache
}

func testTwo(t *testing.T, box *sim.Host) nixops.Exit {
	t.Helper()
	exit, err := box.Switch(t.Context(),
		nixops.SwitchRequest{Closure: simTwo, Action: nixops.ActionTest, Unit: "switch-1"})
	must(t, err)
	return exit
}

func TestSimPowerCycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box, _, _ := simulated(t, sim.Closure{},
			sim.Closure{After: sim.After{FailedUnits: []string{"x.service"}, CutsNetwork: true, AgentBroken: true}})
		booted := make(chan string, 1)
		box.OnBoot(func(closure string) { booted <- closure })
		box.OnDeadline(func(nixops.Deadline) { t.Error("a transient deadline outlived the power cut") })
		before, err := box.BootID(t.Context())
		must(t, err)
		must(t, box.ArmDeadline(t.Context(), nixops.Deadline{Unit: "d", After: time.Minute, Command: []string{"/x"}}))
		if exit := testTwo(t, box); exit.Code != 4 || box.Online() || box.AgentStarts() {
			t.Errorf("exit %v, online %v, agent %v", exit, box.Online(), box.AgentStarts())
		}
		must(t, box.PowerCycle())
		if got := <-booted; got != simOne {
			t.Errorf("booted %s", got)
		}
		if now, err := box.CurrentSystem(t.Context()); err != nil || now != simOne {
			t.Errorf("until boot a power cycle is an undo: %s, %v", now, err)
		}
		if after, err := box.BootID(t.Context()); err != nil || after == before {
			t.Errorf("boot id %s stays", after)
		}
		if failed, err := failedOf(t, box); err != nil || len(failed) != 0 || !box.Online() || !box.AgentStarts() {
			t.Errorf("failed %v, %v", failed, err)
		}
		if state, err := box.SwitchState(t.Context(), "switch-1"); err != nil || state.Phase != nixops.UnitUnknown {
			t.Errorf("a unit of an earlier boot: %+v, %v", state, err)
		}
		time.Sleep(2 * time.Minute)
	})
}

func TestSimLateUnitsAndCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box, _, _ := simulated(t, sim.Closure{}, sim.Closure{
			Script: sim.Script{SwitchTime: 10 * time.Second},
			After:  sim.After{LateUnits: []string{"late.service"}, LateAfter: 5 * time.Second},
		})
		switched := make(chan string, 1)
		box.OnSwitched(func(closure string) { switched <- closure })
		began := time.Now()
		if exit := testTwo(t, box); !exit.OK() || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", exit, time.Since(began))
		}
		if got := <-switched; got != simTwo {
			t.Errorf("switched to %s", got)
		}
		if failed, err := failedOf(t, box); err != nil || len(failed) != 0 {
			t.Errorf("at once: %v, %v", failed, err)
		}
		time.Sleep(6 * time.Second)
		if failed, err := failedOf(t, box); err != nil || !slices.Equal(failed, []string{"late.service"}) {
			t.Errorf("later: %v, %v", failed, err)
		}
	})
}

// TestSimKilledSwitch_A23: lists left by a killed switch start the bad units in a run that
// is told to go on with them, and in no other.
func TestSimKilledSwitch_A23(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box, _, _ := simulated(t, sim.Closure{}, sim.Closure{Script: sim.Script{SwitchTime: time.Minute}})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := box.Switch(t.Context(), nixops.SwitchRequest{Closure: simTwo, Action: nixops.ActionTest, Unit: "switch-1"})
			if err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(40 * time.Second)
		must(t, box.StopUnit(t.Context(), "switch-1"))
		<-done
		undo := func(r nixops.SwitchRequest) []string {
			r.Closure, r.Action = simOne, nixops.ActionTest
			exit, err := box.Switch(t.Context(), r)
			if err != nil || !exit.OK() {
				t.Fatalf("undo: %v, %v", exit, err)
			}
			failed, err := failedOf(t, box)
			must(t, err)
			return failed
		}
		if failed := undo(nixops.SwitchRequest{Unit: "undo-1", Continues: true}); len(failed) == 0 {
			t.Error("the lists did no harm")
		}
		if failed := undo(nixops.SwitchRequest{Unit: "undo-2"}); len(failed) != 0 {
			t.Errorf("without the lists: %v", failed)
		}
	})
}

// TestSimDeadlineSurvivesProcess_A9: the machine's memory is opened again by what
// would be another process, and the deadline fires there, by its command.
func TestSimDeadlineSurvivesProcess_A9(t *testing.T) {
	box, dir, cache := simulated(t, sim.Closure{}, sim.Closure{})
	proof := filepath.Join(t.TempDir(), "fired")
	must(t, box.ArmDeadline(t.Context(),
		nixops.Deadline{Unit: "d", After: 200 * time.Millisecond,
			Command: []string{"/bin/sh", "-c", "echo undone; : >" + proof}}))
	box.Close()
	if _, err := box.CurrentSystem(t.Context()); err == nil {
		t.Error("a closed machine answers")
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(proof); err == nil {
		t.Fatal("fired in a process that is gone")
	}
	again, err := sim.New(dir, cache)
	must(t, err)
	t.Cleanup(again.Close)
	until(t, func() bool { _, err := os.Stat(proof); return err == nil })
	until(t, func() bool {
		state, err := again.SwitchState(t.Context(), "d")
		return err == nil && state.Phase == nixops.UnitFinished && state.Exit.OK()
	})
	if text, err := again.UnitOutput(t.Context(), "d"); err != nil || !strings.Contains(text, "undone") {
		t.Errorf("output %q, %v", text, err)
	}
}

func TestSimMemory(t *testing.T) {
	box, dir, cache := simulated(t, sim.Closure{}, sim.Closure{})
	must(t, box.SetSpace(nixops.Space{StoreFree: 10, BootFree: 1}))
	fat := "00000000000000000000000000000003-nixos-system-fat"
	must(t, sim.WriteClosure(cache, fat, sim.Closure{Cache: sim.Cache{Size: 11}}))
	if err := box.Realise(t.Context(), fat, nil); !errors.Is(err, nixops.ErrNoSpace) {
		t.Errorf("full: %v", err)
	}
	must(t, box.SwitchByHand(simTwo))
	if now, err := box.Profile(t.Context()); err != nil || now != simTwo {
		t.Errorf("by hand: %s, %v", now, err)
	}
	if n, err := box.Fetches(simTwo); err != nil || n != 1 {
		t.Errorf("fetched %d times, %v", n, err)
	}
	box.Close()
	// A half-written or foreign memory is an error, not an empty machine.
	for _, text := range []string{"{", `{"current":5}`, "", `{"boots":1,"boots":2}`, strings.Repeat(" ", 5<<20)} {
		must(t, os.WriteFile(filepath.Join(dir, "state.json"), []byte(text), 0o600))
		if s, err := sim.New(dir, cache); err == nil {
			s.Close()
			t.Errorf("opened %.20q", text)
		}
	}
	for _, base := range []string{"", "x", "../" + simOne} {
		if err := sim.WriteClosure(cache, base, sim.Closure{}); err == nil {
			t.Errorf("wrote closure %q", base)
		}
	}
}

// failedOf names the units of a simulated machine that failed.
func failedOf(t *testing.T, box *sim.Host) ([]string, error) {
	t.Helper()
	units, err := box.Units(t.Context())
	names := []string{}
	for _, u := range units {
		if u.Failed {
			names = append(names, u.Name)
		}
	}
	return names, err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for what other processes bring about.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}
