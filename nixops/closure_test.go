package nixops

import "testing"

// The usage names the script by its path, which may hold the name of an action.
func TestUsageListsActions(t *testing.T) {
	const perl = "Usage: /nix/store/x-nixos-system-checkout-01-24.11/bin/switch-to-configuration " +
		"[switch|boot|test|dry-activate]\n\nswitch:       make the configuration the boot default and activate it\n"
	for usage, want := range map[string]bool{
		perl: false,
		"Usage: switch-to-configuration [check|switch|boot|test|dry-activate]\n\ncheck: run pre-switch checks": true,
		"Usage: /x/[check|me]/switch-to-configuration [switch|boot|test]\n":                                    false,
		"check": false, "": false,
	} {
		if got := listsAction(usage, ActionCheck); got != want {
			t.Errorf("%q: %v", usage, got)
		}
	}
}
