package machines

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
)

// The words of the table for where a host ended up.
const (
	onNew = "the new generation"
	onOld = "the generation before"
)

var scenarios = []scenario{
	{"normal", playNormal},
	{"other-agent", playOtherAgent},
	{"fails-later", playFailsLater},
	{"crash-loop", playCrashLoop},
	{"failed-before", playFailedBefore},
	{"cuts-network", playCutsNetwork},
	{"breaks-agent", playBreaksAgent},
	{"masks-agent", playMasksAgent},
	{"hangs", playHangs},
	{"prechecks", playPrechecks},
	{"collector", playCollector},
	{"two-releases", playTwoReleases},
	{"by-hand", playByHand},
	{"special", playSpecialisation},
	{"locks-out", playLocksOut},
	{"lock-held", playLockHeld},
}

func playNormal(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "normal")
	next := p.next("next")
	p.release(next)
	p.confirmed(next)
	p.tell("normal switch", onNew, "converged")
}

// The agent is restarted by its own switch, and the new one goes on (A1, A2).
func playOtherAgent(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "other-agent")
	next := p.next("next", agentOf(g.other))
	p.release(next)
	p.confirmed(next)
	pid := strings.TrimSpace(p.m.run("systemctl", "show", "--property=MainPID", "--value", "nixfleet-agent.service"))
	runs := strings.TrimSpace(p.m.run("readlink", "/proc/"+pid+"/exe"))
	wants := strings.TrimSpace(p.m.run("readlink", "-f", "/run/current-system/sw/bin/nixfleet-agent"))
	if runs != wants {
		p.Errorf("the agent that runs is %s, that of the generation %s", runs, wants)
	}
	p.tell("switch that replaces the agent", onNew, "converged, confirmed by the new agent")
}

// late fails while it is watched, after the switch has ended well (A15).
var late = unit("late.service", service("/bin/sh -c '/bin/sleep 2; exit 1'"))

func playFailsLater(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "fails-later")
	p.release(p.next("next", late))
	p.back("late.service", true)
	if out, err := p.m.try("systemctl", "is-active", "late.service"); err == nil {
		p.Errorf("late.service is still %s", out)
	}
	p.tell("unit that fails only after the switch", onOld, "")
}

// A crash loop never shows as failed (A24).
func playCrashLoop(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "crash-loop")
	p.release(p.next("next", unit("loop.service",
		"[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh -c '/bin/sleep 0.3; exit "+
			"1'\nRestart=always\nRestartSec=1\n")))
	p.back("loop.service", true)
	p.tell("unit that crash-loops", onOld, "")
}

// A unit that had failed before is not blamed on the release (A4).
func playFailedBefore(t *testing.T, g *ground) {
	broken := unit("broken.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
	p := newPlay(t, g, g.main, "failed-before", broken)
	next := p.next("next", broken)
	p.release(next)
	p.confirmed(next)
	if out, err := p.m.try("systemctl", "is-failed", "broken.service"); err != nil {
		p.Errorf("broken.service is %s", out)
	}
	p.tell("unit that had failed before too", onNew,
		"converged; switch-to-configuration's exit 4 is not blamed on the release")
}

func playCutsNetwork(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "cuts-network")
	p.release(p.next("next", func(s *system) { s.address = "10.98.7.7" }))
	p.back("control-plane-unreachable", false)
	p.tell("new generation cuts the network", onOld, "")
}

// The deadline runs the previous generation's agent by store path (A9).
func playBreaksAgent(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "breaks-agent")
	p.release(p.next("next", agentOf(g.broken)))
	p.back("deadline", true)
	p.tell("new generation breaks the agent's executable", onOld, "")
}

func playMasksAgent(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "masks-agent")
	p.release(p.next("next", func(s *system) { s.units["nixfleet-agent.service"] = mask }))
	p.back("deadline", true)
	p.tell("new generation masks the agent", onOld, "")
}

func playHangs(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "hangs")
	p.release(p.next("next", knob("seconds", "600")))
	p.back("deadline", true)
	p.tell("switch hangs", onOld, "")
}

// The undo runs the previous script, whose own pre-checks must not refuse it (A7, A23).
func playPrechecks(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "prechecks", knob("check-exit", "1"))
	p.release(p.next("next", late))
	p.back("late.service", true)
	p.tell("undo although the previous script's pre-checks refuse", onOld, "")
}

// The collector finds a root for everything that is under way (A13).
func playCollector(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "collector")
	next := p.next("next")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				p.m.try("nix-store", "--gc")
			}
		}
	}()
	p.release(next)
	p.confirmed(next)
	close(stop)
	<-done
	p.m.run("nix-store", "--verify-path", "/nix/store/"+next, "/nix/store/"+p.first)
	p.tell("garbage collection all the time", onNew, "converged")
}

// The second is there before the first has begun to switch.
func playTwoReleases(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "two-releases")
	one, two := p.next("one"), p.next("two")
	h := p.hold("switching")
	p.release(one)
	h.wait(t)
	p.cp.forge.release(p, map[string]string{p.m.name: two})
	until(t, "the control plane wants the newer one", func() string {
		entry, err := p.cp.host(p, p.m.name)
		if err != nil {
			return err.Error()
		}
		if entry.DeclaredClosureHash == nil || *entry.DeclaredClosureHash != two {
			return fmt.Sprintf("%+v", entry)
		}
		return ""
	})
	h.release()
	p.confirmed(two)
	p.tell("two releases in quick succession", "the newer one", "converged")
}

func playByHand(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "by-hand")
	// It holds the lock while the agent wants to commit, and shows what it is late.
	mine := p.build(labelled("by-hand"), knob("seconds", "8"))
	p.copyIn(mine)
	h := p.hold("checking")
	p.release(p.next("next"))
	h.wait(t)
	p.m.run("nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", "/nix/store/"+mine)
	switched := make(chan error, 1)
	go func() {
		_, err := p.m.try("/nix/store/"+mine+"/bin/switch-to-configuration", "switch")
		switched <- err
	}()
	p.listed("start")
	h.release()
	must(t, <-switched)
	p.settled(all(mine))
	until(p, "the control plane hears of it", func() string {
		for _, r := range p.reports() {
			if strings.Contains(string(r.Details), mine) {
				return ""
			}
		}
		return "no report names it"
	})
	p.healthy()
	p.tell("operator switches by hand meanwhile", "the operator's", "third-closure: it is left as it is")
}

func playSpecialisation(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "special")
	alt := p.build(labelled("alt"))
	next := p.next("next", func(s *system) { s.special = map[string]string{"alt": alt} })
	p.release(next)
	p.confirmed(next)
	p.m.run("/run/current-system/specialisation/alt/bin/switch-to-configuration", "test")
	want := outside{alt, next, next}
	until(p, "the specialisation counts as the target", func() string {
		h, err := p.cp.host(p, p.m.name)
		if err != nil {
			return err.Error()
		}
		if s, err := p.status(); err != nil || s.Current != alt || !h.Converged || p.outside() != want {
			return fmt.Sprintf("%+v, %+v, %+v, %v", p.outside(), s, h, err)
		}
		return ""
	})
	last := p.next("last")
	p.release(last)
	p.confirmed(last)
	p.tell("a specialisation of the target running, then a release", onNew, "converged all the time")
}

// No release may lock a host out (T16).
func playLocksOut(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "locks-out")
	trust, _, err := pki.ParseTrust([]byte(p.g.read("keys/trust.json")))
	must(p, err)
	stranger, err := pki.GenerateKey(pki.AlgorithmEd25519)
	must(p, err)
	public := stranger.Public()
	trust.CIReleaseKey = pki.KeySlot{Current: &public}
	text, err := trust.Marshal()
	must(p, err)
	p.release(p.next("next", func(s *system) { s.trust = string(text) }))
	p.stays("activation-failed", "trust")
	p.tell("a trust.json that would lock the host out", onOld, "")
}

func playLockHeld(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "lock-held")
	next := p.next("next")
	held := make(chan error, 1)
	go func() {
		_, err := p.m.try("flock", "-n", "/run/nixos/switch-to-configuration.lock", "sh", "-c",
			"touch /run/is-held; until test -e /run/let-go; do sleep 1; done")
		held <- err
	}()
	until(t, "the lock is held", func() string {
		if out, err := p.m.try("ls", "/run/is-held"); err != nil {
			return out
		}
		return ""
	})
	p.release(next)
	p.remembers("lock-held")
	p.m.run("touch", "/run/let-go")
	must(p, <-held)
	p.confirmed(next)
	p.tell("switch lock held for a while", onNew, "lock-held: another switch is running; then converged")
}
