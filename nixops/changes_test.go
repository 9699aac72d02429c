package nixops

import (
	"slices"
	"testing"
)

// The lines are those of nixpkgs' program; systemd's own are between them in the journal.
func TestChangesOfASwitch(t *testing.T) {
	const run = `stopping the following units: app.service, breaks.service
NOT restarting the following changed units: display-manager.service
activating the configuration...
Stopped app.service - an application.
reloading the following units: dbus.service
restarting the following units: nginx.service, nixfleet-agent.service
starting the following units: app.service, multi-user.target
the following new units were started: new@1.service
warning: the following units failed: bad.service
`
	const dry = `would stop the following units: b.service, a.service
would NOT stop the following changed units: c.service
would activate the configuration...
would restart systemd
would reload the following units: d.service
would restart the following units: e.service
would start the following units: f.service
`
	for name, c := range map[string]struct{ output, did, would string }{
		"a run": {run, "stopped app.service breaks.service; kept display-manager.service; reloaded dbus.service; " +
			"restarted nginx.service nixfleet-agent.service; started app.service new@1.service; failed bad.service", ""},
		"a dry run": {dry, "", "would stop a.service b.service; would keep c.service; would reload d.service; " +
			"would restart e.service; would start f.service"},
		"nothing": {"activating the configuration...\nsetting up /etc...\n", "", ""},
	} {
		changes := ChangesOf(c.output)
		if c.did != "" && changes.String() != c.did || c.would != "" && changes.Would() != c.would ||
			c.did+c.would == "" && changes.String() != "" {
			t.Errorf("%s: %s; %s", name, changes, changes.Would())
		}
	}
	if many := ChangesOf("starting the following units: " + manyUnits(30)); len(many.Started) != 30 ||
		!slices.IsSorted(many.Started) || len(many.String()) > 500 {
		t.Errorf("%s", many)
	}
}

func manyUnits(n int) string {
	text := ""
	for i := range n {
		text += string(rune('a'+i%26)) + "-" + string(rune('a'+i/26)) + ".service, "
	}
	return text
}
