package machines

import (
	"os"
	"regexp"
	"testing"
	"time"
)

// The control plane is killed at every step of the journal, and is back after a while:
// an outage is not a reason for anything but to wait.
func init() {
	begin := func(name string, first ...change) func(*testing.T, *ground) *play {
		return func(t *testing.T, g *ground) *play {
			return newPlay(t, g, g.ownControlPlane(t, name, g.main.forge), name, first...)
		}
	}
	scenarios = append(scenarios,
		course("cp-1", begin("cp-1"), killed("fetching"), killed("arming"), killed("switching")),
		course("cp-2", begin("cp-2"), killed("checking"), killed("undoing", late), killed("undone", late)),
		course("cp-3", begin("cp-3"), killed("proven"), killed("committing"), killed("committed")),
		course("cp-4", begin("cp-4", inhibitor("0")), part{"staging", playControlPlaneKilledStaging},
			part{"staged", playControlPlaneKilledStaged}),
	)
	killedAt["staging"], killedAt["staged"] = true, true
}

// killed is a part with a control plane that is killed at a step.
func killed(step string, changes ...change) part {
	killedAt[step] = true
	return part{step, func(p *play, next func(...change) string) {
		closure := next(changes...)
		p.killedAt(step, closure)
		what := "control plane killed while " + step
		if len(changes) > 0 { // for the worse
			p.back("late.service", true)
			p.tell(what, onOld, "")
			return
		}
		p.confirmed(closure)
		p.blameless()
		p.tell(what, onNew, "converged once it was back")
	}}
}

// killedAt are the steps of the journal that have a kill of the control plane.
var killedAt = map[string]bool{}

// away is how long a control plane is gone: some of the agent's attempts to reach it.
const away = 5 * time.Second

// killedAt releases a closure and kills the control plane while the machine stands at a
// step; it is back when the machine has gone on for a while.
func (p *play) killedAt(step, closure string) {
	p.Helper()
	h := p.hold(step)
	p.release(closure)
	h.wait(p)
	p.cp.kill()
	if found := p.m.step(); found != step {
		p.Fatalf("the control plane was killed at %q, wanted %q", found, step)
	}
	h.release()
	time.Sleep(away)
	p.cp.start(p)
}

func playControlPlaneKilledStaging(p *play, next func(...change) string) {
	closure := next(inhibitor("1"))
	p.killedAt("staging", closure)
	p.staged(closure)
	p.m.reboot(nil)
	p.confirmed(closure)
	p.blameless()
	p.tell("control plane killed while staging; later a reboot", onNew, "deferred once it was back; then converged")
}

func playControlPlaneKilledStaged(p *play, next func(...change) string) {
	closure := next(inhibitor("2"))
	p.release(closure)
	p.staged(closure)
	p.cp.kill()
	p.m.reboot(nil)
	p.at("checking") // where it stays without an answer
	time.Sleep(away)
	p.cp.start(p)
	p.confirmed(closure)
	p.blameless()
	p.tell("control plane killed while staged, then a reboot", onNew, "deferred; converged once it was back")
}

// blameless: nothing is held against any closure.
func (p *play) blameless() {
	p.Helper()
	if s, err := p.status(); err != nil || s.Quarantine != nil && s.Quarantine.Failures > 0 {
		p.Errorf("status %+v, %v: nothing may be quarantined", s, err)
	}
}

// Every step that the journal knows is cut off from power, and from its control plane.
func TestEveryStepIsPlayed(t *testing.T) {
	source, err := os.ReadFile("../../agent/journal/journal.go")
	must(t, err)
	steps := regexp.MustCompile(`(?m)^\t[A-Z]\w+ +Step = "([a-z]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(steps) < 11 {
		t.Fatalf("only %d steps found in the agent", len(steps))
	}
	for _, step := range steps {
		if !cutAt[step[1]] {
			t.Errorf("no power cut while %s", step[1])
		}
		if !killedAt[step[1]] {
			t.Errorf("no kill of the control plane while %s", step[1])
		}
	}
}
