package nixops_test

import (
	"slices"
	"testing"

	"nixfleet/nixops"
)

// Compared as text, the first release that added a member sent a whole fleet to a reboot.
func TestInhibitorsAsNixOSComparesThem_A33(t *testing.T) {
	for _, c := range []struct {
		running, target string
		holds           []string
	}{
		{``, ``, nil},
		{``, `{"dbus-implementation":"broker"}`, nil},
		{`{"dbus-implementation":"broker"}`, ``, nil},
		{`{"systemd":"259"}`, `{"dbus-implementation":"dbus","systemd":"259"}`, nil},
		{`{"dbus-implementation":"dbus","systemd":"259"}`, `{"systemd":"259"}`, nil},
		{`{"a":"1","b":"2"}`, "{\n  \"b\": \"2\",\n  \"a\": \"1\"\n}\n", nil},
		{`{"systemd":"258"}`, `{"systemd":"259"}`, []string{"systemd"}},
		{`{"c":"1","a":"1","b":"1"}`, `{"a":"2","b":"1","c":"2"}`, []string{"a", "c"}},
		{`{"a":{"x":1,"y":2}}`, `{"a":{"y":2,"x":1}}`, nil},
		{`one`, `two`, nil},
		{`["a"]`, `["b"]`, nil},
		{`null`, `{"a":"1"}`, nil},
		{`{"a":"1"`, `{"a":"2"}`, nil},
		{`{"a":"0","a":"1"}`, `{"a":"1"}`, nil},
	} {
		got := nixops.Closure{SwitchInhibitor: c.target}.Inhibitors(nixops.Closure{SwitchInhibitor: c.running})
		if !slices.Equal(got, c.holds) {
			t.Errorf("from %s to %s: %q holds the switch, want %q", c.running, c.target, got, c.holds)
		}
	}
}
