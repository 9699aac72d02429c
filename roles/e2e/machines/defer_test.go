package machines

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func init() {
	scenarios = append(scenarios,
		scenario{"exit-100", playInitChanged},
		scenario{"inhibited", playInhibited},
		scenario{"window", playRebootWindow},
		scenario{"staged-bad", playStagedBad},
	)
}

// once gives the machine a loader that can boot an entry once, by a stub.
func once(m *machine) { m.write("/boot/loader/efi", "a stub of systemd-boot's variables\n", 0o644) }

// staged waits until the machine has staged the target and everybody says so.
func (p *play) staged(next string) {
	p.Helper()
	p.at("staged")
	until(p, "the control plane shows the pending reboot", func() string {
		h, err := p.cp.host(p, p.m.name)
		if err != nil {
			return err.Error()
		}
		if !h.PendingReboot || h.Converged {
			return fmt.Sprintf("%+v", h)
		}
		return ""
	})
	if o := p.outside(); o.current != p.first {
		p.Errorf("a staged update runs already: %+v", o)
	}
	p.defers(next)
}

// defers waits until the control plane has heard that the target waits for a boot.
func (p *play) defers(next string) {
	p.Helper()
	until(p, p.m.name+" reports that it defers", func() string {
		for _, r := range p.reports() {
			if r.Event == "activation-deferred" && strings.Contains(string(r.Details), next) {
				return ""
			}
		}
		return "no report of it"
	})
}

// The deferred update waits for a person, however long that takes (A11, A17, A18).
func playInitChanged(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "exit-100")
	next := p.next("next", func(s *system) { s.init = "2\n" })
	p.release(next)
	p.staged(next)
	time.Sleep(5 * time.Second)
	if p.m.booted() != 1 {
		t.Errorf("%s rebooted without being asked to", p.m.name)
	}
	p.m.reboot(nil)
	p.confirmed(next)
	p.tell("switch-to-configuration ends with 100; then root reboots", "the new generation, after the reboot",
		"deferred: systemd; pending reboot; then converged")
}

// inhibitor gives a system a switch inhibitor: two systems with other texts cannot be
// switched between live.
func inhibitor(text string) change {
	return file("switch-inhibitors", `{"machines.test":"`+text+`"}`+"\n")
}

func playInhibited(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "inhibited", inhibitor("one"))
	next := p.next("next", inhibitor("two"))
	p.release(next)
	p.staged(next)
	p.m.reboot(nil)
	p.confirmed(next)
	p.tell("deferred update without a reboot window; then root reboots", "the new generation, after the reboot",
		"deferred; pending reboot; then converged")
}

func playRebootWindow(t *testing.T, g *ground) {
	p := newPlayOn(t, g, g.main, "window", "channel-window", once, inhibitor("one"), option("--reboot-policy=window:*:*"))
	next := p.next("next", inhibitor("two"), option("--reboot-policy=window:*:*"))
	p.release(next)
	p.defers(next)
	p.confirmed(next)
	if n := p.m.booted(); n != 2 {
		t.Errorf("%s was booted %d times", p.m.name, n)
	}
	p.tell("deferred update with a reboot window (stub of systemd-boot's variables)",
		"the new generation, booted once and then for good", "deferred; rebooted in its window; converged")
}

// A staged generation that does not prove itself is left again by a reboot.
func playStagedBad(t *testing.T, g *ground) {
	p := newPlayOn(t, g, g.brief, "staged-bad", "channel-staged-bad", once, inhibitor("one"),
		option("--reboot-policy=immediate"))
	next := p.next("next", inhibitor("two"), option("--reboot-policy=immediate"), agentOf(g.broken))
	p.release(next)
	p.defers(next)
	p.back("deadline", true)
	p.tell("staged update whose agent is broken (stub of systemd-boot's variables)", onOld, "")
}
