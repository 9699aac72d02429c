package machines

import (
	"strings"
	"testing"
)

func init() {
	scenarios = append(scenarios, scenario{"undo-down", playUndoWithUnitsDown}, scenario{"made-up", playMadeUpUnits},
		scenario{"reloads", playReloads})
}

// The target's activation script asks for the restart of a unit that has no file, which
// ends every switch in its middle, with services down. Nothing but the switch would start
// the service again. The undo finds no list of it, and the service runs (A34, A35).
func playUndoWithUnitsDown(t *testing.T, g *ground) {
	app := func(version string) change {
		return func(s *system) {
			s.units["app.service"] = "[Service]\nEnvironment=VERSION=" + version + "\nExecStart=/bin/sleep 86400\n"
		}
	}
	p := newPlay(t, g, g.main, "undo-down", app("1"))
	p.m.run("systemctl", "start", "app.service")
	p.release(p.next("next", app("2"), knob("ghost", "ghost.service")))
	p.back("switch: exit 1: the switch script itself died", true)
	if out, err := p.m.try("systemctl", "is-active", "app.service"); err != nil {
		p.Errorf("app.service is %s", out)
	}
	if out, err := p.m.try("cat", "/run/nixos/activation-restart-list"); err == nil {
		p.Errorf("the undo left %q for the next switch", out)
	}
	p.tell("switch script that dies in its middle, twice", onOld, "")
}

// A container's health check is a unit with a new name each time (A32).
func playMadeUpUnits(t *testing.T, g *ground) {
	const make = "PATH=/usr/sbin:/usr/bin; while :; do n=$(od -An -tx1 -N8 /dev/urandom | tr -d ' \\n'); " +
		"systemd-run --quiet --unit=ID-$n.service /bin/false; sleep 1; done"
	noise := unit("noise.service", "[Service]\nExecStart=/bin/sh -c \""+
		strings.ReplaceAll(strings.ReplaceAll(make, "ID", strings.Repeat("9f86d081884c7d65", 4)), "$", "$$")+"\"\n")
	p := newPlay(t, g, g.main, "made-up", noise)
	next := p.next("next", noise, unit("new.service", "[Service]\nExecStart=/bin/sleep 86400\n"))
	p.release(next)
	p.confirmed(next)
	if out, err := p.m.try("systemctl", "list-units", "--failed", "--plain", "--no-legend"); err != nil ||
		!strings.Contains(out, "9f86d081884c7d65") {
		p.Errorf("no made-up unit has failed: %q, %v", out, err)
	}
	p.tell("units with made-up names fail all the time", onNew, "converged")
}

// A deadline keeps its moment although systemd is reloaded all the while (A27).
func playReloads(t *testing.T, g *ground) {
	reloads := unit("reloads.service",
		"[Service]\nExecStart=/bin/sh -c 'while :; do /usr/bin/systemctl daemon-reload; /bin/sleep 2; done'\n")
	p := newPlay(t, g, g.brief, "reloads", reloads)
	p.release(p.next("next", reloads, agentOf(g.broken)))
	p.back("deadline", true)
	p.tell("new generation breaks the agent's executable; systemd is reloaded every two seconds", onOld, "")
}
