package nixops

import (
	"testing"
	"time"
)

func TestProcessesOfUnits(t *testing.T) {
	for groups, want := range map[string]bool{
		"0::/system.slice/nixfleet-switch-x-1.service\n":                                           true,
		"0::/system.slice/nixfleet-switch-x-1.service/sub\n":                                       true,
		"12:pids:/other\n1:name=systemd:/machine/system.slice/nixfleet-switch-x-1.service\n0::/\n": true,
		"0::/system.slice/nixfleet-switch-x-11.service\n":                                          false,
		"0::/system.slice/other-nixfleet-switch-x-1.service\n":                                     false,
		"": false,
	} {
		if got := inUnit(groups, "nixfleet-switch-x-1"); got != want {
			t.Errorf("%q is in the unit: %v", groups, got)
		}
	}
	const rest = " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000 2 3"
	for _, name := range []string{"(sh)", "(a ) b)", "()"} {
		if began, err := startOf("17 " + name + rest); err != nil || began != 123450*time.Millisecond {
			t.Errorf("%s began %s after the boot, %v", name, began, err)
		}
	}
	if _, err := startOf("17 (sh) S 1"); err == nil {
		t.Error("a line that is cut off")
	}
}
