package nixops

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/disk"
)

// TestSystemdSupervisor needs PID 1 to be systemd; the end-to-end suite runs this
// test binary inside its machines.
func TestSystemdSupervisor(t *testing.T) {
	if !systemdRuns() || os.Geteuid() != 0 {
		t.Skip("PID 1 is not systemd, or not root")
	}
	const patience = 3 * time.Minute // in which all comes, on however slow a machine
	ctx := t.Context()
	s := &systemd{files: unitFiles{dir: "/run/nixfleet-test/units"}, again: time.Second}
	t.Cleanup(func() { os.RemoveAll("/run/nixfleet-test") })
	finished := func(t *testing.T, unit string) Exit {
		t.Helper()
		var state UnitState
		err := wait(ctx, patience, func() (bool, error) {
			var err error
			state, err = s.state(ctx, unit)
			return state.Phase == UnitFinished, err
		})
		if err != nil {
			t.Fatalf("unit %s: %v, %+v", unit, err, state)
		}
		return state.Exit
	}
	// Stopped before its shell has run a line, a unit never began.
	begun := func(t *testing.T, unit string) {
		t.Helper()
		if err := wait(ctx, patience, func() (bool, error) {
			return disk.Exists(s.files.path(unit, "started")),
				nil
		}); err != nil {
			t.Fatalf("unit %s does not begin: %v", unit, err)
		}
	}
	start := func(t *testing.T, unit, script string, env ...string) {
		t.Helper()
		if err := s.start(ctx, unit, []string{"/bin/sh", "-c", script}, env); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("exit codes A3", func(t *testing.T) {
		for _, code := range []int{0, 1, 2, 4, 11, 100, 101} {
			unit := fmt.Sprintf("nixops-exit-%d", code)
			start(t, unit, "exit $CODE", fmt.Sprintf("CODE=%d", code))
			if exit := finished(t, unit); exit.Code != code || exit.Signal != "" {
				t.Errorf("exit %d is recorded as %+v", code, exit)
			}
		}
		units, err := s.units(ctx)
		if err != nil || slices.ContainsFunc(units, func(u Unit) bool { return strings.HasPrefix(u.Name, "nixops-exit") }) {
			t.Errorf("units %+v, %v: our own are left", units, err)
		}
	})
	t.Run("PATH is ours", func(t *testing.T) {
		t.Setenv("PATH", os.Getenv("PATH")+":/nowhere/nixops")
		start(t, "nixops-path", "case $PATH in *:/nowhere/nixops) ;; *) exit 7 ;; esac")
		if exit := finished(t, "nixops-path"); exit.Code != 0 {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("the kernel kills it last", func(t *testing.T) {
		start(t, "nixops-oom", "test $(systemctl show --property=OOMScoreAdjust --value nixops-oom.service) = -900")
		if exit := finished(t, "nixops-oom"); exit.Code != 0 {
			t.Errorf("%+v", exit)
		}
	})
	t.Run("the part of a user is bounded", func(t *testing.T) {
		start(t, "nixops-user", "sleep 2; setpriv --reuid=65534 --regid=65534 --clear-groups sleep 1000; exit 4")
		err := wait(ctx, patience, func() (bool, error) {
			_, err := endUsersPart(ctx, "nixops-user", time.Second)
			state, stateErr := s.state(ctx, "nixops-user")
			return state.Phase == UnitFinished, errors.Join(err, stateErr)
		})
		if exit := finished(t, "nixops-user"); err != nil || exit.Code != 4 {
			t.Errorf("%+v, %v", exit, err)
		}
	})
	t.Run("collectors", func(t *testing.T) { testCollectors(t, s) })
	t.Run("output in the journal A2", func(t *testing.T) {
		start(t, "nixops-out", "echo first; sleep 0.2; echo last; exit 4")
		finished(t, "nixops-out")
		err := wait(ctx, patience, func() (bool, error) {
			text, err := s.output(ctx, "nixops-out")
			return strings.Contains(text, "first") && strings.Contains(text, "last"), err
		})
		if err != nil {
			t.Error(err)
		}
	})
	// With protected control groups the boot id of a container is that of its host.
	t.Run("output in the journal, seen from the agent's sandbox", func(t *testing.T) {
		start(t, "nixops-seen", "echo a word for the agent")
		finished(t, "nixops-seen")
		args := append([]string{"--quiet", "--pipe", "--wait", "--collect", "--property=ProtectControlGroups=yes",
			"--property=ProtectKernelTunables=yes", "--", "journalctl"}, journalArguments("nixops-seen")...)
		err := wait(ctx, patience, func() (bool, error) {
			out, err := command{path: "systemd-run", args: args, timeout: toolTimeout}.run(ctx)
			return strings.Contains(string(out), "a word for the agent"), err
		})
		if err != nil {
			t.Error(err)
		}
	})
	// Of what a unit says at once journald keeps ten thousand lines, and says so only when
	// the unit speaks again. The end is what people need.
	t.Run("the end of a noisy switch arrives A39", func(t *testing.T) {
		start(t, "nixops-noisy",
			"i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done; echo this was the end; exit 4")
		finished(t, "nixops-noisy")
		err := wait(ctx, patience, func() (bool, error) {
			text, err := s.output(ctx, "nixops-noisy")
			return strings.Contains(text, "line 59999\nthis was the end\n"), err
		})
		if err != nil {
			text, _ := s.output(ctx, "nixops-noisy")
			t.Errorf("%v; it ends with %q", err, text[max(0, len(text)-100):])
		}
	})
	t.Run("stop", func(t *testing.T) {
		start(t, "nixops-stop", "sleep 60")
		if err := s.start(ctx, "nixops-stop", []string{"/bin/true"}, nil); !errors.Is(err, ErrUnitExists) {
			t.Errorf("started twice: %v", err)
		}
		begun(t, "nixops-stop")
		if err := s.stop(ctx, "nixops-stop"); err != nil {
			t.Fatal(err)
		}
		if exit := finished(t, "nixops-stop"); exit.Meaning() != MeaningKilled {
			t.Errorf("stopped: %+v", exit)
		}
		for _, unit := range []string{"nixops-stop", "nixops-never"} {
			if err := s.stop(ctx, unit); err != nil {
				t.Errorf("stop %s again: %v", unit, err)
			}
		}
	})
	t.Run("missing program", func(t *testing.T) {
		if err := s.start(ctx, "nixops-missing", []string{t.TempDir() + "/script"}, nil); err != nil {
			t.Fatal(err)
		}
		if exit := finished(t, "nixops-missing"); exit.Code != 127 {
			t.Errorf("a program that is not there: %+v", exit)
		}
	})
	t.Run("killed with its shell", func(t *testing.T) {
		start(t, "nixops-kill", "sleep 60")
		begun(t, "nixops-kill")
		if _, err := (command{path: "systemctl", args: []string{"kill", "--signal=KILL", "nixops-kill.service"}}).
			run(ctx); err != nil {
			t.Fatal(err)
		}
		if exit := finished(t, "nixops-kill"); exit.Meaning() != MeaningKilled {
			t.Errorf("killed: %+v", exit)
		}
	})
	t.Run("deadline A9", func(t *testing.T) {
		proof := t.TempDir() + "/fired"
		d := Deadline{Unit: "nixops-deadline", After: time.Hour, Command: []string{"/bin/sh", "-c", "echo $PATH >" + proof}}
		if err := s.arm(ctx, d); err != nil {
			t.Fatal(err)
		}
		if armed, err := s.armed(ctx, d.Unit); err != nil || !armed {
			t.Errorf("armed: %v, %v", armed, err)
		}
		if state, err := s.state(ctx, d.Unit); err != nil || state.Phase != UnitUnknown {
			t.Errorf("before: %+v, %v", state, err)
		}
		for range 2 {
			if err := s.disarm(ctx, d.Unit); err != nil {
				t.Fatal(err)
			}
		}
		if state, err := s.activeState(ctx, d.Unit+".timer"); err != nil || state != "not-found" {
			t.Errorf("the timer is %s although disarmed, %v", state, err)
		}

		began := time.Now()
		d.After = 1500 * time.Millisecond
		if err := s.arm(ctx, d); err != nil {
			t.Fatalf("arm again: %v", err)
		}
		if exit := finished(t, d.Unit); !exit.OK() || !disk.Exists(proof) {
			t.Errorf("fired: %+v", exit)
		}
		if text, err := os.ReadFile(proof); err != nil || strings.TrimSpace(string(text)) != os.Getenv("PATH") {
			t.Errorf("its tools are on %q, %v; ours on %q", text, err, os.Getenv("PATH"))
		}
		if took := time.Since(began); took < d.After {
			t.Errorf("fired after %v", took)
		}
		if armed, err := s.armed(ctx, d.Unit); err != nil || armed {
			t.Errorf("armed afterwards: %v, %v", armed, err)
		}
	})
	// A switch reloads systemd in its middle, and other programs do when they please.
	t.Run("reloads and reexecs do not move a deadline A27", func(t *testing.T) {
		elapses := func(unit string) string {
			t.Helper()
			blocks, err := properties(ctx, []string{"NextElapseUSecMonotonic"}, unit+".timer")
			if err != nil || len(blocks) != 1 {
				t.Fatalf("timer of %s: %v, %v", unit, blocks, err)
			}
			return blocks[0]["NextElapseUSecMonotonic"]
		}
		reload := func(how string) {
			t.Helper()
			if _, err := (command{path: "systemctl", args: []string{how}, timeout: toolTimeout}).run(ctx); err != nil {
				t.Fatal(err)
			}
		}
		later := Deadline{Unit: "nixops-moment", After: time.Hour, Command: []string{"/bin/true"}}
		if err := s.arm(ctx, later); err != nil {
			t.Fatal(err)
		}
		armed := elapses(later.Unit)
		for _, how := range []string{"daemon-reload", "daemon-reexec", "daemon-reload"} {
			time.Sleep(100 * time.Millisecond)
			reload(how)
			if now := elapses(later.Unit); now != armed {
				t.Errorf("after %s the deadline comes at %s, it was armed for %s", how, now, armed)
			}
		}
		if err := s.disarm(ctx, later.Unit); err != nil {
			t.Fatal(err)
		}

		// It fires at its moment although systemd is reloaded all the while, and no earlier.
		fired := t.TempDir() + "/fired"
		soon := Deadline{Unit: "nixops-fires", After: 5 * time.Second,
			Command: []string{"/bin/sh", "-c", "cat /proc/uptime >" + fired}}
		before, err := sinceBoot()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.arm(ctx, soon); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(time.Minute)
		for next := time.Now(); !hasEnded(s.files, soon.Unit); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("with a reload every two seconds the deadline does not fire")
			}
			if time.Now().After(next) {
				reload("daemon-reload")
				next = time.Now().Add(2 * time.Second)
			}
		}
		text, err := os.ReadFile(fired)
		if err != nil {
			t.Fatal(err)
		}
		uptime, _, _ := strings.Cut(string(text), " ")
		seconds, err := strconv.ParseFloat(uptime, 64)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Duration(seconds*float64(time.Second)) - before
		t.Logf("armed for %s, fired after %s", soon.After, took)
		if took < soon.After-20*time.Millisecond { // /proc/uptime has hundredths of a second
			t.Errorf("armed for %s, fired after %s", soon.After, took)
		}
	})
	t.Run("failed and crash-looping units A24", func(t *testing.T) {
		unit := func(name, text string) {
			if err := os.WriteFile("/run/systemd/system/"+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				command{path: "systemctl", args: []string{"stop", name}}.run(context.Background())
				command{path: "systemctl", args: []string{"reset-failed", name}}.run(context.Background())
				os.Remove("/run/systemd/system/" + name)
			})
		}
		unit("nixops-bad.service", "[Service]\nExecStart=/bin/false\n")
		unit("nixops-loop.service",
			"[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=300ms\n")
		unit("nixops-good.service", "[Service]\nExecStart=/bin/sleep 60\n")
		for _, args := range [][]string{{"daemon-reload"},
			{"start", "--no-block", "nixops-bad.service", "nixops-loop.service", "nixops-good.service"}} {
			if _, err := (command{path: "systemctl", args: args}).run(ctx); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[string]Unit{}
		err := wait(ctx, patience, func() (bool, error) {
			units, err := s.units(ctx)
			for _, u := range units {
				seen[u.Name] = u
			}
			loop := seen["nixops-loop.service"]
			return seen["nixops-bad.service"].Failed && loop.Failed && loop.Restarts >= 2, err
		})
		if err != nil || seen["nixops-good.service"].Name == "" || seen["nixops-good.service"].Failed {
			t.Errorf("%v: bad %+v, loop %+v, good %+v", err, seen["nixops-bad.service"], seen["nixops-loop.service"],
				seen["nixops-good.service"])
		}
		for unit, want := range map[string]string{
			"nixops-bad.service": "failed", "nixops-good.service": "active", "nixops-none.service": "not-found",
		} {
			if state, err := s.activeState(ctx, unit); err != nil || state != want {
				t.Errorf("%s is %q, %v; want %q", unit, state, err, want)
			}
		}
	})
	// Who brings a unit, how its last run ended although it runs again, and that one that
	// was stopped is started.
	t.Run("origin and end of units A32 A34", func(t *testing.T) {
		run := func(program string, args ...string) {
			t.Helper()
			if _, err := (command{path: program, args: args, timeout: toolTimeout}).run(ctx); err != nil {
				t.Fatal(err)
			}
		}
		// Not below /run, where what programs make lies; in the machines /etc is of the store.
		const dir = "/usr/local/lib/systemd/system"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"nixops-well.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sleep 0.7\nRestart=always\n",
			"nixops-badly.service": "[Unit]\nStartLimitIntervalSec=0\n" +
				"[Service]\nExecStart=/bin/sh -c 'sleep 0.7; exit 1'\nRestart=always\n",
			"nixops-app.service": "[Service]\nExecStart=/bin/sleep 600\n",
		} {
			if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				command{path: "systemctl", args: []string{"stop", name}}.run(context.Background())
				os.Remove(dir + "/" + name)
			})
		}
		run("systemctl", "daemon-reload")
		run("systemctl", "start", "nixops-well.service", "nixops-badly.service", "nixops-app.service")
		run("systemd-run", "--quiet", "--unit=nixops-made-up", "/bin/sleep", "600")
		defer run("systemctl", "stop", "nixops-made-up.service")
		seen := func() map[string]Unit {
			t.Helper()
			units, err := s.units(ctx)
			if err != nil {
				t.Fatal(err)
			}
			byName := map[string]Unit{}
			for _, u := range units {
				byName[u.Name] = u
			}
			return byName
		}
		err := wait(ctx, patience, func() (bool, error) {
			units := seen()
			well, badly := units["nixops-well.service"], units["nixops-badly.service"]
			return well.Active && well.Restarts > 0 && well.EndsWell && badly.Active && badly.Restarts > 0 &&
				!badly.EndsWell, nil
		})
		units := seen()
		if err != nil {
			t.Errorf("%v: %+v, %+v", err, units["nixops-well.service"], units["nixops-badly.service"])
		}
		app, made := units["nixops-app.service"], units["nixops-made-up.service"]
		if !app.Active || !app.Declared || app.Transient || app.Age <= 0 || !made.Active || made.Declared || !made.Transient {
			t.Errorf("declared %+v, made up %+v", app, made)
		}
		run("systemctl", "stop", "nixops-app.service")
		ran := NewBaseline(slices.Collect(maps.Values(units)), time.Hour).Ran
		if !slices.Contains(ran, app.Name) || slices.Contains(ran, made.Name) {
			t.Errorf("what ran is %q", ran)
		}
		if down, err := s.down(ctx, ran); err != nil || !slices.Contains(down, app.Name) {
			t.Errorf("down: %q, %v", down, err)
		}
		if down, err := s.startAgain(ctx, []string{app.Name, "nixops-none.service", "nixops-badly.service"}); err != nil ||
			slices.Contains(down, app.Name) {
			t.Errorf("down after the start: %q, %v", down, err)
		}
		if u := seen()[app.Name]; !u.Active {
			t.Errorf("started again: %+v", u)
		}
	})
	// What a deadline is to undo may have left nobody else to do it.
	t.Run("deadline that fails or is killed runs again", func(t *testing.T) {
		runs := t.TempDir() + "/runs"
		d := Deadline{Unit: "nixops-again", After: 100 * time.Millisecond, Command: []string{"/bin/sh", "-c",
			`echo >>"$0"; case $(wc -l <"$0") in [1-7]) exit 3 ;; 8) systemctl kill --signal=KILL nixops-again.service; ` +
				`sleep 60 ;; esac`, runs}}
		quickly := &systemd{files: s.files, again: 100 * time.Millisecond}
		if err := quickly.arm(ctx, d); err != nil {
			t.Fatal(err)
		}
		if exit := finished(t, d.Unit); !exit.OK() {
			t.Errorf("%+v", exit)
		}
		if text, err := os.ReadFile(runs); err != nil || len(text) != 9 {
			t.Errorf("it ran %d times, %v", len(text), err)
		}
		// A switch is never run again by itself.
		start(t, "nixops-once", "echo >>"+runs+"; exit 4")
		if exit := finished(t, "nixops-once"); exit.Code != 4 {
			t.Errorf("%+v", exit)
		}
		time.Sleep(300 * time.Millisecond)
		if text, err := os.ReadFile(runs); err != nil || len(text) != 10 {
			t.Errorf("it ran %d times, %v", len(text)-9, err)
		}
	})
	// systemd reads its own transient units again then, and not always what it wrote.
	t.Run("reload and reexec in the middle", func(t *testing.T) {
		proof := t.TempDir() + "/a $HOME; 'quoted' \"path\" %n"
		d := Deadline{Unit: "nixops-later", After: 2 * time.Second,
			Command: []string{"/bin/sh", "-c", `echo "$0;" >>"$1"; [ $(wc -l <"$1") = 2 ] || exit 4`, "$$x", proof}}
		if err := s.arm(ctx, d); err != nil {
			t.Fatal(err)
		}
		start(t, "nixops-reexec", "systemctl daemon-reload; systemctl daemon-reexec; sleep 0.5; exit 100")
		if exit := finished(t, "nixops-reexec"); exit.Meaning() != MeaningReboot {
			t.Errorf("after daemon-reexec: %+v", exit)
		}
		if exit := finished(t, d.Unit); !exit.OK() {
			t.Errorf("deadline after daemon-reexec: %+v", exit)
		}
		if text, err := os.ReadFile(proof); err != nil || string(text) != "$$x;\n$$x;\n" {
			t.Errorf("the deadline's command wrote %q, %v", text, err)
		}
	})
}

// Nothing but a deadline is run again, and no start limit ends that. A deadline is a
// moment and not a countdown [A27].
func TestPropertiesOfTransientUnits(t *testing.T) {
	dir := t.TempDir()
	for program, script := range map[string]string{
		"systemd-run": "printf '%s\\n' \"$@\" >" + dir + "/asked",
		"systemctl":   "echo UserspaceTimestampMonotonic=2000000",
	} {
		if err := os.WriteFile(dir+"/"+program, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := &systemd{files: unitFiles{dir: dir + "/units"}}
	asked := func(err error) []string {
		t.Helper()
		text, readErr := os.ReadFile(dir + "/asked")
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	again := []string{"--property=Restart=on-failure", "--property=RestartSec=30000ms",
		"--property=StartLimitIntervalSec=0"}
	deadline := asked(s.arm(t.Context(), Deadline{Unit: "d", After: time.Minute, Command: []string{"/bin/true"}}))
	for _, want := range append(again, "--timer-property=AccuracySec=1s", "--collect", "--unit=d") {
		if !slices.Contains(deadline, want) {
			t.Errorf("a deadline is asked for without %s: %q", want, deadline)
		}
	}
	if slices.ContainsFunc(deadline, func(arg string) bool {
		return strings.Contains(arg, "on-active") || strings.Contains(arg, "on-calendar")
	}) {
		t.Errorf("a deadline is a countdown, or has two moments: %q", deadline)
	}
	// Two seconds after the kernel this systemd began.
	moment := slices.IndexFunc(deadline, func(arg string) bool { return strings.HasPrefix(arg, "--on-startup=") })
	if moment < 0 {
		t.Fatalf("a deadline without a moment: %q", deadline)
	}
	at, err := time.ParseDuration(strings.TrimPrefix(deadline[moment], "--on-startup="))
	if least := now + time.Minute - 2*time.Second; err != nil || at < least || at > least+time.Minute {
		t.Errorf("the deadline comes %s after systemd began, %v; want %s", at, err, least)
	}
	one := asked(s.run(t.Context(), "s", []string{"/bin/true"}, nil))
	if slices.ContainsFunc(one, func(arg string) bool {
		return slices.Contains(again, arg) ||
			strings.HasPrefix(arg, "--on-")
	}) {
		t.Errorf("a switch is asked for with %q", one)
	}
}

// hasEnded says whether the record of a unit says how it ended.
func hasEnded(f unitFiles, unit string) bool {
	state, err := f.ended(unit)
	return err == nil && state.Phase == UnitFinished
}

// testCollectors runs collectors of evidence that remain after their exit, that fail, and that are not run at all.
func testCollectors(t *testing.T, s *systemd) {
	const file = "/run/systemd/system/" + CollectorUnit
	ran := t.TempDir() + "/ran"
	install := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		exec.Command("systemctl", "stop", CollectorUnit).Run()
		os.Remove(file)
		exec.Command("systemctl", "daemon-reload").Run()
	})
	runs := func() int {
		text, _ := os.ReadFile(ran)
		return len(text)
	}
	count := "ExecStart=/bin/sh -c 'printf x >>" + ran + "; exit "
	install("[Service]\nType=oneshot\nRemainAfterExit=yes\n" + count + "0'\n")
	for want := 1; want <= 2; want++ {
		if exit, err := s.collect(t.Context()); err != nil || exit != 0 || runs() != want {
			t.Errorf("remains after its exit: %d, %v, ran %d times", exit, err, runs())
		}
	}
	exec.Command("systemctl", "stop", CollectorUnit).Run()
	install("[Service]\nType=oneshot\n" + count + "3'\n")
	if exit, err := s.collect(t.Context()); err != nil || exit == 0 || runs() != 3 {
		t.Errorf("fails: %d, %v, ran %d times", exit, err, runs())
	}
	install("[Unit]\nConditionPathExists=/nowhere\n[Service]\nType=oneshot\n" + count + "0'\n")
	if exit, err := s.collect(t.Context()); err == nil || !strings.Contains(err.Error(), "condition") || runs() != 3 {
		t.Errorf("its condition is not met: %d, %v, ran %d times", exit, err, runs())
	}
}
