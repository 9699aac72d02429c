package machines

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The power is cut at every step of the journal, then the machine boots. Until the new
// generation is the boot default a power cut is a rollback; after it the new
// generation goes on to be confirmed.
func init() {
	for _, c := range []struct {
		name, at string
		step     []string // where the disk may be left
		first    []change
		next     []change
		new      bool
		cut      func(*play, string) // waits for the moment; the closure is the target
	}{
		{name: "fetching", at: "fetching", step: []string{"fetching"}, new: true, cut: func(p *play, next string) {
			arrived, resume := make(chan struct{}, 8), make(chan struct{})
			p.g.hook(p.m, func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, ".nar") {
					arrived <- struct{}{}
					<-resume
				}
				return false
			})
			p.Cleanup(func() { close(resume) })
			p.release(next)
			<-arrived
			p.g.hook(p.m, nil)
		}},
		{name: "arming", at: "arming", step: []string{"arming"}, cut: func(p *play, next string) {
			// Its report cannot be delivered, so that the step takes its time.
			p.g.hook(p.m, func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, ".nar") {
					time.AfterFunc(150*time.Millisecond, func() { p.g.net.link(p.m.port, false) })
				}
				return false
			})
			p.release(next)
			p.at("arming")
			time.AfterFunc(time.Second, func() { p.g.net.link(p.m.port, true) })
		}},
		{name: "stopping", at: "switching, units being stopped", step: []string{"switching"}, next: []change{knob("seconds", "30")}, cut: func(p *play, next string) {
			p.release(next)
			p.at("switching")
			p.listed("start")
		}},
		{name: "flipped", at: "switching, after current-system flipped", step: []string{"switching"}, next: []change{knob("seconds-after", "30")}, cut: func(p *play, next string) {
			p.release(next)
			until(p, time.Minute, "current-system flips", func() string {
				if o := p.outside(); o.current != next {
					return o.current
				}
				return ""
			})
		}},
		{name: "checking", at: "checking", step: []string{"checking"}, cut: func(p *play, next string) {
			p.release(next)
			p.at("checking")
		}},
		{name: "proven", at: "proven", step: []string{"checking", "proven", "committing"}, next: []change{knob("boot-seconds", "5")}, cut: func(p *play, next string) {
			p.release(next)
			p.at("proven", "committing")
		}},
		{name: "committing", at: "committing, before the boot loader", step: []string{"committing"}, next: []change{knob("boot-seconds", "30")}, cut: func(p *play, next string) {
			p.release(next)
			until(p, time.Minute, "the profile is set", func() string {
				if o := p.outside(); o.profile != next {
					return o.profile
				}
				return ""
			})
		}},
		{name: "loader", at: "committing, after the boot loader", step: []string{"committing"}, next: []change{knob("boot-seconds-after", "30")}, new: true, cut: func(p *play, next string) {
			p.release(next)
			until(p, time.Minute, "the boot default is set", func() string {
				if o := p.outside(); o.boot != next {
					return o.boot
				}
				return ""
			})
		}},
		{name: "undoing", at: "undoing", step: []string{"undoing"}, first: []change{knob("seconds", "20")}, next: []change{late}, cut: func(p *play, next string) {
			p.release(next)
			p.at("undoing")
		}},
	} {
		scenarios = append(scenarios, scenario{"power-" + c.name, func(t *testing.T, g *ground) {
			p := newPlay(t, g, g.main, "power-"+c.name, c.first...)
			next := p.next("next", c.next...)
			c.cut(p, next)
			found := p.powerCut()
			if !strings.Contains(" "+strings.Join(c.step, " ")+" ", " "+found+" ") {
				t.Fatalf("the power was cut at %q, wanted %v", found, c.step)
			}
			what := "power cut while " + c.at
			switch {
			case c.new:
				p.confirmed(next)
				p.tell(what, onNew, "converged")
			case found == "undoing":
				p.back(2*time.Minute, "late.service", true)
				p.tell(what, onOld, "")
			default:
				p.back(2*time.Minute, "power was lost", false)
				p.tell(what, onOld, "")
			}
		}})
	}
	scenarios = append(scenarios, scenario{"power-committed", func(t *testing.T, g *ground) {
		// Only what nobody answers stays there long enough to be seen.
		cp := g.ownControlPlane(t, "power-committed")
		p := newPlay(t, g, cp, "power-committed")
		next := p.next("next", knob("boot-seconds", "2"))
		p.release(next)
		p.at("committing")
		cp.kill()
		p.at("committed")
		if found := p.powerCut(); found != "committed" {
			t.Fatalf("the power was cut at %q", found)
		}
		cp.start(t)
		p.confirmed(next)
		p.tell("power cut while committed", onNew, "converged")
	}})
	scenarios = append(scenarios, scenario{"reboots", func(t *testing.T, g *ground) {
		p := newPlay(t, g, g.main, "reboots")
		p.release(p.next("next"))
		p.at("checking")
		p.m.try("systemctl", "reboot")
		p.back(2*time.Minute, "power was lost", false)
		p.tell("reboot during the confirm window", onOld, "")
	}})
}

// listed waits until the switch has written one of its lists.
func (p *play) listed(list string) {
	p.Helper()
	until(p, time.Minute, "the switch records what it will "+list, func() string {
		if out, err := p.m.try("cat", "/run/nixos/"+list+"-list"); err != nil || out == "" {
			return "no list yet"
		}
		return ""
	})
}
