package machines

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// The power is cut at every step of the journal, then the machine boots. Until the new
// generation is the boot default a power cut is a rollback; after it the new
// generation goes on to be confirmed.
func init() {
	begin := func(name string, first ...change) func(*testing.T, *ground) *play {
		return func(t *testing.T, g *ground) *play { return newPlay(t, g, g.main, name, first...) }
	}
	scenarios = append(scenarios,
		course("power-1", begin("power-1"),
			powerCut("arming", "arming", nil, lostPower),
			// Before anything of the target runs, while it stops units, and after it has flipped.
			powerCut("switching", "switching, before the script", nil, lostPower),
			powerCut("switching-stops", "switching, units being stopped", func(p *play, next string) { p.listed("start") },
				lostPower, knob("seconds", pause)),
			powerCut("switching-flipped", "switching, after current-system flipped",
				func(p *play, next string) { p.becomes(current, next) }, lostPower, knob("seconds-after", pause)),
		),
		course("power-2", begin("power-2"),
			powerCut("checking", "checking", nil, lostPower),
			powerCut("proven", "proven", nil, lostPower),
			powerCut("committing", "committing, before the boot loader", func(p *play, next string) { p.becomes(profile, next) },
				lostPower, knob("boot-seconds", pause)),
			powerCut("undone", "undone", nil, lateUndone, late),
		),
		course("power-3", begin("power-3"),
			// Held, the step can be left no more: the boot loader has been told.
			powerCut("committing-loader", "committing, after the boot loader", nil, keepsNew),
			powerCut("committed", "committed", nil, keepsNew),
		),
		course("power-4", begin("power-4", knob("seconds", pause)),
			powerCut("undoing", "undoing", func(p *play, _ string) {
				p.at("undoing")
				p.listed("start")
			}, lateUndone, late),
		),
		course("power-5", begin("power-5", inhibitor("one")),
			// The boot loader has not been told yet: what boots is what was there.
			powerCut("staging", "staging, before the boot loader", func(p *play, next string) { p.becomes(profile, next) },
				lostPower, inhibitor("two"), knob("boot-seconds", pause)),
			part{"staged", playPowerStaged},
		),
		scenario{"power-fetching", playPowerFetching}, scenario{"reboots", playReboots},
	)
	cutAt["staged"], cutAt["fetching"] = true, true
}

// powerCut is a part with a power cut at a step, the first word of its name: when there is
// a moment to wait for, then, and otherwise while the machine is held there.
func powerCut(name, at string, moment func(p *play, next string), end func(p *play, next string),
	changes ...change) part {
	step, _, _ := strings.Cut(name, "-")
	cutAt[step] = true
	return part{name, func(p *play, next func(...change) string) {
		closure := next(changes...)
		let := func() {}
		if moment == nil {
			h := p.hold(step)
			p.release(closure)
			h.wait(p)
			let = h.release
		} else {
			p.release(closure)
			moment(p, closure)
		}
		p.powerCut(step, let)
		end(p, closure)
		p.tell("power cut while "+at, map[bool]string{true: onNew, false: onOld}[p.outside() == all(closure)], "")
	}}
}

// cutAt are the steps of the journal that have a power cut.
var cutAt = map[string]bool{}

// pause is what a script takes that is to be interrupted, in seconds: for ever, as far as
// the one who waits for that moment can tell.
const pause = "120"

// How it ends after a power cut: as a rollback, with the new generation, and with the undo
// that had begun.
func lostPower(p *play, _ string)   { p.Helper(); p.back("power was lost", false) }
func keepsNew(p *play, next string) { p.Helper(); p.confirmed(next); p.saw = "converged" }
func lateUndone(p *play, _ string)  { p.Helper(); p.back("late.service", true) }

// powerCut cuts the power, finds the disk at the step, lets go of what was held, and
// switches the machine on again.
func (p *play) powerCut(step string, let func()) {
	p.Helper()
	p.m.cut()
	found := p.m.step()
	let()
	if found != step {
		p.Fatalf("the power was cut at %q, wanted %q", found, step)
	}
	p.m.boot()
}

// The links by which a machine says what it runs.
func current(o outside) string { return o.current }
func profile(o outside) string { return o.profile }

// becomes waits for one of the links, seen from outside.
func (p *play) becomes(link func(outside) string, closure string) {
	p.Helper()
	until(p, p.m.name+" comes to have "+closure, func() string {
		if o := p.outside(); link(o) != closure {
			return fmt.Sprintf("it is %+v, step %q", o, p.m.step())
		}
		return ""
	})
}

// listed waits until the switch has written one of its lists.
func (p *play) listed(list string) {
	p.Helper()
	until(p, "the switch records what it will "+list, func() string {
		if out, err := p.m.try("cat", "/run/nixos/"+list+"-list"); err != nil || out == "" {
			return "no list yet"
		}
		return ""
	})
}

// In the middle of the download.
func playPowerFetching(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "power-fetching")
	next := p.next("next")
	arrived, resume := make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(resume) })
	g.hook(p.m, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".nar") {
			select {
			case arrived <- struct{}{}:
			default:
			}
			<-resume
		}
		return false
	})
	p.release(next)
	until(t, "the download begins", func() string {
		select {
		case <-arrived:
			return ""
		default:
			return "the cache is not asked"
		}
	})
	g.hook(p.m, nil)
	p.powerCut("fetching", func() {})
	p.confirmed(next)
	p.tell("power cut while fetching", onNew, "converged")
}

func playPowerStaged(p *play, next func(...change) string) {
	closure := next(inhibitor("two"))
	p.release(closure)
	p.staged(closure)
	p.powerCut("staged", func() {})
	p.confirmed(closure)
	p.tell("power cut while staged", "the new generation, which that boot was staged for", "deferred; then converged")
}

func playReboots(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "reboots")
	h := p.hold("checking")
	p.release(p.next("next"))
	h.wait(t)
	p.m.reboot(h.release)
	p.back("power was lost", false)
	p.tell("reboot during the confirm window", onOld, "")
}
