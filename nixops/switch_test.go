package nixops

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// The script ends with the number of whatever error it met: what it changed and what it
// said tell a held lock and a refusal from a death in its middle.
func TestExitByWhatChanged_A36(t *testing.T) {
	const lock = "Could not acquire lock\n"
	for _, c := range []struct {
		exit   Exit
		after  string
		output string
		want   Meaning
	}{
		{Exit{Code: 0}, sysB, "", MeaningDone},
		{Exit{Code: 4}, sysB, "", MeaningUnits},
		{Exit{Code: 100}, sysA, "", MeaningReboot},
		{Exit{Code: 1}, sysA, "", MeaningRefused},
		{Exit{Code: 1}, sysB, "", MeaningDied},
		{Exit{Code: 2}, sysB, "", MeaningActivation},
		{Exit{Code: 2}, sysA, "", MeaningNotBegun},
		{Exit{Code: 21}, sysA, "Is a directory", MeaningNotBegun},
		{Exit{Code: 21}, sysB, "", MeaningDied},
		{Exit{Code: 11}, sysA, lock, MeaningLocked},
		{Exit{Code: 11}, sysA, "", MeaningLocked},
		{Exit{Code: 11}, sysA, "stopping the following units: app.service\n", MeaningNotBegun},
		{Exit{Code: 11}, sysB, lock, MeaningDied},
		{Exit{Code: 11}, sysB, "", MeaningDied},
		{Exit{Code: 101}, sysA, "", MeaningDied},
		{Exit{Code: 101}, sysB, "", MeaningDied},
		{Exit{Code: 143}, sysB, "", MeaningKilled},
		{Exit{Code: -1, Signal: "KILL"}, sysB, "", MeaningKilled},
	} {
		got := c.exit.After(sysA, c.after, c.output)
		if got.Meaning() != c.want || got.OK() != (c.want == MeaningDone) {
			t.Errorf("%+v after %q, running %s: %s, want %s", c.exit, c.output, c.after, got, c.want)
		}
	}
}

// scripted is a machine without an init or Nix on which sysA runs, and whose sysB has the
// given switch script. $root is the machine's root there.
func scripted(t *testing.T, script string) *machine {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{
		"nix/store/" + sysB + "/bin/switch-to-configuration": "#!/bin/sh\nroot=" + quote(root) + "\n" + script,
		"nix/store/" + sysA + "/name":                        "a",
		"run/nixos/switch-to-configuration.lock":             "",
	})
	if err := os.Chmod(root+"/nix/store/"+sysB+"/bin/switch-to-configuration", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nix/store/"+sysA, root+currentSystem); err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(HostConfig{Root: root, Supervisor: SupervisorProcess, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return h.(*machine)
}

const flip = "ln -sfn /nix/store/" + sysB + " $root/run/current-system\n"

func TestSwitchReadsItsExitByTheState_A36(t *testing.T) {
	for name, c := range map[string]struct {
		action Action
		script string
		want   Meaning
		locked bool
	}{
		"lock held": {ActionTest, "echo 'Could not acquire lock' >&2; exit 11", MeaningLocked, true},
		"logind does not answer": {ActionTest, flip + "echo 'Error: Failed to list users' >&2; exit 11", MeaningDied,
			false},
		"bus lost in the middle":        {ActionTest, flip + "exit 1", MeaningDied, false},
		"refused":                       {ActionTest, "exit 1", MeaningRefused, false},
		"not a NixOS installation":      {ActionTest, "exit 2", MeaningNotBegun, false},
		"installer that meets the lock": {ActionBoot, "echo 'Could not acquire lock' >&2; exit 11", MeaningLocked, true},
		"installer that fails":          {ActionBoot, "exit 1", MeaningRefused, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := scripted(t, c.script)
			exit, err := m.Switch(t.Context(), SwitchRequest{Closure: sysB, Action: c.action, Unit: "switch"})
			if exit.Meaning() != c.want || errors.Is(err, ErrLockHeld) != c.locked || err != nil && !c.locked {
				t.Errorf("%s, %v; want %s", exit, err, c.want)
			}
		})
	}
}

// What an earlier run, or its activation script, left in /run/nixos becomes no part of a
// run of ours; one that goes on where its own run died finds what that had stopped.
func TestSwitchListsOfEarlierRuns_A23_A35(t *testing.T) {
	all := append(append([]string{}, killedLists...), activationLists...)
	for name, c := range map[string]struct {
		request SwitchRequest
		want    string
	}{
		"test":      {SwitchRequest{Action: ActionTest}, ""},
		"switch":    {SwitchRequest{Action: ActionSwitch}, ""},
		"continues": {SwitchRequest{Action: ActionTest, Continues: true}, "reload-list restart-list start-list"},
		"boot":      {SwitchRequest{Action: ActionBoot}, "all"},
	} {
		t.Run(name, func(t *testing.T) {
			m := scripted(t, "cd $root/run/nixos; ls *-list >$root/seen 2>/dev/null; exit 0")
			for _, list := range all {
				write(t, m.root, map[string]string{"run/nixos/" + list: "ghost.service\n"})
			}
			c.request.Closure, c.request.Unit = sysB, "switch"
			if exit, err := m.Switch(t.Context(), c.request); err != nil || !exit.OK() {
				t.Fatalf("%s, %v", exit, err)
			}
			text, err := os.ReadFile(m.root + "/seen")
			if err != nil {
				t.Fatal(err)
			}
			seen := strings.Fields(string(text))
			if got := strings.Join(seen, " "); c.want == "all" && len(seen) != len(all) || c.want != "all" && got != c.want {
				t.Errorf("the script found %q, want %q", got, c.want)
			}
		})
	}
}

// An installer that exits 0 and has written nothing is found out by its entries.
func TestBootEntryOfAClosure(t *testing.T) {
	entry := func(closure string) string { return "options init=/nix/store/" + closure + "/init loglevel=4\n" }
	for name, files := range map[string]map[string]string{
		"systemd-boot":          {"boot/loader/entries/nixos-generation-1.conf": entry(sysA)},
		"systemd-boot, counted": {"efi/loader/entries/nixos-0123+3.conf": entry(sysA)},
		"GRUB": {"boot/grub/grub.cfg": "menuentry \"NixOS\" {\n linux x init=/nix/store/" + sysA +
			"/init\n}\n"},
		"extlinux": {"boot/extlinux/extlinux.conf": "LABEL x\n  APPEND init=/nix/store/" + sysA + "/init\n"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{root: t.TempDir(), platform: "linux"}
			write(t, m.root, files)
			for closure, want := range map[string]bool{sysA: true, sysB: false} {
				if has, err := m.HasBootEntry(t.Context(), closure); err != nil || has != want {
					t.Errorf("entry of %s: %v, %v", closure, has, err)
				}
			}
		})
	}
}
