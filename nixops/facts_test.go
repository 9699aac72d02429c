package nixops

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestExitMeaning_A3(t *testing.T) {
	for _, c := range []struct {
		exit Exit
		want Meaning
	}{
		{Exit{Code: 0}, MeaningDone}, {Exit{Code: 1}, MeaningRefused}, {Exit{Code: 2}, MeaningActivation},
		{Exit{Code: 4}, MeaningUnits}, {Exit{Code: 11}, MeaningLocked}, {Exit{Code: 100}, MeaningReboot},
		{Exit{Code: 101}, MeaningDied}, {Exit{Code: 137}, MeaningKilled}, {Exit{Code: -1, Signal: "TERM"}, MeaningKilled},
		{Exit{Code: 0, Signal: "KILL"}, MeaningKilled}, {Exit{Code: 3}, MeaningUnknown}, {Exit{Code: 255}, MeaningUnknown},
	} {
		if got := c.exit.Meaning(); got != c.want || c.exit.String() == "" || c.exit.OK() != (c.want == MeaningDone) {
			t.Errorf("%+v means %s (%s), want %s", c.exit, got, c.exit, c.want)
		}
	}
}

func TestUnitRecord(t *testing.T) {
	files := unitFiles{dir: t.TempDir()}
	for text, want := range map[string]Exit{
		"exited 0\n": {}, "exited 100\n": {Code: 100}, "exited 143\n": {Code: 143},
	} {
		write(t, files.dir, map[string]string{"u.exit": text})
		if got, ok, err := files.exit("u"); err != nil || !ok || got != want {
			t.Errorf("%q: %+v, %v, %v", text, got, ok, err)
		}
	}
	for _, text := range []string{"exited", "exited x", "killed 9", "0", "\x00\x00", strings.Repeat("exited 0 ", 100)} {
		write(t, files.dir, map[string]string{"u.exit": text})
		if _, ok, err := files.exit("u"); err == nil || ok {
			t.Errorf("%q passed for a record", text)
		}
	}
	write(t, files.dir, map[string]string{"cut.exit": ""})
	if _, ok, err := files.exit("cut"); ok || err != nil {
		t.Errorf("a record that was not written: %v, %v", ok, err)
	}
	if _, ok, err := files.exit("none"); ok || err != nil {
		t.Errorf("no record: %v, %v", ok, err)
	}
}

func TestUnitsOfSystemd_A24(t *testing.T) {
	out := "Id=good.service\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\n\n" +
		"Id=bad.service\nActiveState=failed\nSubState=failed\nResult=exit-code\nNRestarts=5\n\n" +
		"Id=loop.service\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nNRestarts=17\n\n" +
		"Id=queued.service\nActiveState=activating\nSubState=auto-restart-queued\nResult=signal\nNRestarts=2\n\n" +
		"NRestarts=3\nId=periodic.service\nSubState=auto-restart\nActiveState=activating\nResult=success\n\n" +
		"Id=x.mount\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
	blocks, err := parseProperties([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	restarts := map[string]uint64{}
	for _, u := range unitsOf(blocks, 0) {
		if u.Failed {
			failed = append(failed, u.Name)
		}
		restarts[u.Name] = u.Restarts
	}
	if want := []string{"bad.service", "loop.service", "queued.service", "x.mount"}; !slices.Equal(failed, want) {
		t.Errorf("failed %q, want %q", failed, want)
	}
	if restarts["loop.service"] != 17 || restarts["periodic.service"] != 3 || restarts["x.mount"] != 0 {
		t.Errorf("restarts %v", restarts)
	}
}

func FuzzProperties(f *testing.F) {
	f.Add([]byte("Id=a.service\nActiveState=failed\n\nId=b.service\n"))
	f.Add([]byte("\n\n=\nNRestarts=99999999999999999999999\nId=x"))
	f.Fuzz(func(t *testing.T, out []byte) {
		blocks, err := parseProperties(out)
		if err != nil {
			return
		}
		for _, u := range unitsOf(blocks, 0) {
			if u.Name == "" {
				t.Error("a unit without a name")
			}
		}
	})
}

func TestClockFloor_A22(t *testing.T) {
	day := func(s string) time.Time { d, _ := time.Parse("2006-01-02", s); return d }
	if got := ClockFloor(time.Time{}, day("2026-03-01"), day("2025-01-01")); !got.Equal(day("2026-03-01")) {
		t.Errorf("floor %v", got)
	}
	if !ClockFloor().IsZero() {
		t.Error("a floor out of nothing")
	}
	for version, want := range map[string]time.Time{
		"25.11.20260301.4f1c0a9": day("2026-03-01"), "26.05pre912345.4f1c0a9": {}, "25.11pre-git": {}, "": {},
		"25.11.20269901.x": {},
	} {
		if got := SourceDate(version); !got.Equal(want) {
			t.Errorf("source date of %q is %v", version, got)
		}
	}
}

func TestNeedsReboot(t *testing.T) {
	booted := Closure{Kernel: "/nix/store/k1", Initrd: "/nix/store/i1", KernelParams: "quiet"}
	same := booted
	if got := same.NeedsReboot(booted); len(got) != 0 {
		t.Errorf("same: %v", got)
	}
	other := Closure{Kernel: "/nix/store/k2", Initrd: "/nix/store/i1", KernelParams: "quiet debug"}
	if got := other.NeedsReboot(booted); !slices.Equal(got, []string{"kernel", "kernel-params"}) {
		t.Errorf("other: %v", got)
	}
	modules := booted
	modules.KernelModules = "/nix/store/m2"
	if got := modules.NeedsReboot(booted); !slices.Equal(got, []string{"kernel-modules"}) {
		t.Errorf("other modules of the same kernel: %v", got)
	}
}

func TestSwitchCommand(t *testing.T) {
	for _, c := range []struct {
		platform string
		action   Action
		want     string
	}{
		{"linux", ActionTest, "/s/bin/switch-to-configuration test"},
		{"linux", ActionBoot, "/s/bin/switch-to-configuration boot"},
		{"darwin", ActionTest, "/s/activate"},
		{"darwin", ActionBoot, "/s/sw/bin/true"},
	} {
		got, err := switchCommand(c.platform, "/s", c.action)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s %s: %q, %v", c.platform, c.action, got, err)
		}
	}
	if _, err := switchCommand("linux", "/s", "reboot --force"); err == nil {
		t.Error("any word is an action")
	}
}

func TestHostConfig(t *testing.T) {
	if _, err := NewHost(HostConfig{Supervisor: "cron"}); err == nil {
		t.Error("an unknown supervisor passed")
	}
	if _, err := NewHost(HostConfig{Root: filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("a root that is not there passed")
	}
	h, err := NewHost(HostConfig{Root: t.TempDir(), Supervisor: SupervisorProcess})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Reboot(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("reboot of a directory: %v", err)
	}
	for _, read := range []func(context.Context) (string, error){h.CurrentSystem, h.BootedSystem, h.Profile,
		h.BootDefault} {
		if got, err := read(t.Context()); got != "" || err != nil {
			t.Errorf("an empty host has %q, %v", got, err)
		}
	}
}

func TestPinnedCaches(t *testing.T) {
	options := strings.Join(substitution([]string{"https://a.example", "https://b.example"}, []string{"k:1"}), "\x00")
	for _, want := range []string{
		"substituters\x00https://a.example https://b.example", "trusted-public-keys\x00k:1", "require-sigs\x00true",
		"extra-substituters\x00", "narinfo-cache-negative-ttl\x000",
	} {
		if !strings.Contains(options, want) {
			t.Errorf("options lack %q", want)
		}
	}
	if strings.Contains(strings.Join(substitution(nil, nil), " "), "substituters") {
		t.Error("nothing pinned changes the machine's substituters")
	}
}

func TestCommandOutputIsBounded(t *testing.T) {
	var lines []string
	out, err := command{
		path: "/bin/sh", args: []string{"-c",
			"echo out; i=0; while [ $i -lt 3000 ]; do echo line $i is long enough to overflow the tail >&2; i=$((i+1)); done; " +
				"exit 3"},
		lines: func(l string) { lines = append(lines, l) },
	}.run(t.Context())
	failed, ok := errors.AsType[*commandError](err)
	if !ok || failed.exitCode() != 3 || out != nil {
		t.Fatalf("%q, %v", out, err)
	}
	if len(failed.stderr) > tailKept || !strings.Contains(failed.stderr, "line 2999") || len(err.Error()) > MaxOutput+100 {
		t.Errorf("kept %d bytes, message has %d", len(failed.stderr), len(err.Error()))
	}
	if len(lines) != 3000 || lines[2999] != "line 2999 is long enough to overflow the tail" {
		t.Errorf("%d lines", len(lines))
	}
	_, err = command{path: "/bin/sh",
		args: []string{"-c",
			`printf 'gr\374n\n' >&2; i=0; while [ $i -lt 3000 ]; do printf '●' >&2; i=$((i+1)); done; exit 1`},
		lines: func(l string) { lines = append(lines, l) }}.run(t.Context())
	if err == nil || !utf8.ValidString(err.Error()) || lines[3000] != "gr\uFFFDn" || !utf8.ValidString(lines[3001]) {
		t.Errorf("what is not text: %v, lines %q", err, lines[3000:])
	}
	began := time.Now()
	// An orphan that keeps the pipes open does not hold the caller.
	_, err = command{path: "/bin/sh", args: []string{"-c", "sleep 30 & sleep 30"}, timeout: 100 * time.Millisecond}.run(
		t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > waitDelay+5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}
