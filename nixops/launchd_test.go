package nixops

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/disk"
)

func TestLaunchdSupervisor(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("the stand-in for launchctl needs python3")
	}
	dir := t.TempDir()
	script, err := os.ReadFile("testdata/launchctl")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{
		"launchctl": string(script),
		"list": "-\t78\torg.example.bad\n120\t0\torg.example.good\n121\t1\torg.example.restarted\n" +
			"-\t0\torg.example.done\n",
	})
	if err := os.Chmod(dir+"/launchctl", 0o755); err != nil {
		t.Fatal(err)
	}
	l := &launchd{files: unitFiles{dir: dir + "/units"}, ctl: dir + "/launchctl"}
	ctx := t.Context()
	finished := func(unit string) UnitState {
		t.Helper()
		var state UnitState
		err := wait(ctx, 30*time.Second, func() (bool, error) {
			var err error
			state, err = l.state(ctx, unit)
			return state.Phase == UnitFinished, err
		})
		if err != nil {
			t.Fatalf("%s: %+v, %v", unit, state, err)
		}
		return state
	}
	if err := l.start(ctx, "switch-1", []string{"/bin/sh", "-c", `echo "<said> & $WHO"; exit 4`},
		[]string{"WHO=job"}); err != nil {
		t.Fatal(err)
	}
	if state := finished("switch-1"); state.Exit.Code != 4 {
		t.Errorf("ended with %+v", state)
	}
	if text, err := l.output(ctx, "switch-1"); err != nil || text != "<said> & job\n" {
		t.Errorf("output %q, %v", text, err)
	}
	if err := l.start(ctx, "switch-1", []string{"/bin/sleep", "30"}, nil); err != nil {
		t.Fatalf("the name of a finished unit: %v", err)
	}
	if err := l.start(ctx, "switch-1", []string{"/bin/true"}, nil); !errors.Is(err, ErrUnitExists) {
		t.Errorf("the name of a running unit: %v", err)
	}
	if err := l.stop(ctx, "switch-1"); err != nil {
		t.Error(err)
	}
	proof := dir + "/fired"
	if err := l.arm(ctx, Deadline{Unit: "deadline-1", After: 2 * time.Second,
		Command: []string{"/bin/sh", "-c", "echo $PATH >" + proof}}); err != nil {
		t.Fatal(err)
	}
	if armed, err := l.armed(ctx, "deadline-1"); err != nil || !armed {
		t.Errorf("armed: %v, %v", armed, err)
	}
	if state, err := l.state(ctx, "deadline-1"); err != nil || state.Phase != UnitUnknown {
		t.Errorf("before: %+v, %v", state, err)
	}
	if state := finished("deadline-1"); !state.Exit.OK() || !disk.Exists(proof) {
		t.Errorf("fired: %+v", state)
	}
	if text, err := os.ReadFile(proof); err != nil || strings.TrimSpace(string(text)) != os.Getenv("PATH") {
		t.Errorf("its tools are on %q, %v; ours on %q", text, err, os.Getenv("PATH"))
	}
	os.Remove(proof)
	if err := l.arm(ctx, Deadline{Unit: "deadline-2", After: 2 * time.Second,
		Command: []string{"/bin/sh", "-c", ": >" + proof}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.disarm(ctx, "deadline-2"); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(3 * time.Second)
	if disk.Exists(proof) {
		t.Error("fired although disarmed")
	}
	units, err := l.units(ctx)
	if err != nil || len(units) != 4 || !units[0].Failed || units[1].Failed || units[2].Failed || units[3].Failed {
		t.Errorf("health %+v, %v", units, err)
	}
	for unit, want := range map[string]string{
		"org.example.good": "active", "org.example.bad": "failed", "org.example.done": "inactive",
		"org.example.none": "not-found",
	} {
		if state, err := l.activeState(ctx, unit); err != nil || state != want {
			t.Errorf("%s is %q, %v; want %q", unit, state, err, want)
		}
	}
}

func TestPropertyListIsXML(t *testing.T) {
	list := propertyList("a&b", "/out", []string{"/bin/sh", "<\x01>"})
	d := xml.NewDecoder(strings.NewReader(string(list)))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
