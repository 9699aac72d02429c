package fleet_test

import (
	"strings"
	"testing"

	"nixfleet/nixops/fleet"
)

func TestValidHostName(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"web-01": true, "Web_01": true, "w": true, "web.01": true, "web-01.example.com": true, label: true,
		label + "." + label + "." + label + "." + label[:61]: true, "xn--mnchen-3ya.example": true, "10.0.0.x": true,
		"": false, ".": false, "web..01": false, "web.01.": false, ".web": false, "-web": false, "web-": false,
		"web-.a": false, "_web": false, label + "a": false, "web 01": false, "münchen": false, "../hosts": false,
		"10.0.0.1": false, "web/01": false, "web\n": false,
		label + "." + label + "." + label + "." + label[:62]: false,
	} {
		if got := fleet.ValidHostName(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
