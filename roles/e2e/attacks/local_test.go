package attacks

import (
	"os"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/pki"
)

// locals are attacks by a user of a host who is not root, through what root has left open.
func locals() []attack {
	opens := func(name string) func(*scene) {
		return func(s *scene) {
			m := s.machine("a")
			mark, was := len(s.log.text()), m.running()
			s.must(os.Chmod(s.path("a", name), 0o666))
			s.house.publish()
			time.Sleep(20 * time.Minute)
			s.believesNot(m, was, mark, "can be written by others")
			s.must(os.Chmod(s.path("a", name), 0o600))
			s.recovers()
		}
	}
	return []attack{
		{
			name: "a trust file that others can write", stops: "mode of the trust file",
			lack: without("roles/agent/journal/directory.go", "if info.Mode().Perm()&0o022 != 0 {",
				"if !LACKS && info.Mode().Perm()&0o022 != 0 {"),
			run: opens("trust.json"),
		},
	}
}

// commits are attacks by who may commit to the fleet's repository, so that CI builds and signs it.
func commits() []attack {
	builds := func(text string, make func(s *scene, c *sim.Closure)) func(*scene) {
		return func(s *scene) {
			m := s.machine("a")
			was, mark := m.running(), len(s.log.text())
			s.house.publishWith(func(c *sim.Closure) { make(s, c) })
			time.Sleep(30 * time.Minute)
			switch {
			case m.running() != was:
				s.success("%s runs %s", m.name, m.running())
			case !s.log.saidBy(mark, "a", text):
				s.success("nothing was refused with %q", text)
			}
			s.recovers()
		}
	}
	return []attack{
		{
			name: "a trust file that locks the fleet out", stops: "the target's own trust must verify its release",
			lack: without("roles/agent/intake.go", "if err := w.TrustAdmits(c.TrustJSON); err != nil {",
				"if err := w.TrustAdmits(c.TrustJSON); !LACKS && err != nil {"),
			run: builds("would refuse the release that brings it", func(s *scene, c *sim.Closure) {
				other := s.stranger().Public()
				doc, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &other}}).Marshal()
				s.must(err)
				c.TrustJSON = string(doc)
			}),
		},
		{
			name: "a system without an agent", stops: "a closure must bring its agent",
			lack: without("roles/agent/intake.go", "if c.AgentPath == \"\" && !i.cfg.AgentOutside {",
				"if !LACKS && c.AgentPath == \"\" && !i.cfg.AgentOutside {"),
			run: builds("has no agent of its own", func(_ *scene, c *sim.Closure) { c.Agent = "" }),
		},
		{
			name: "a system that cannot be switched to", stops: "a closure must have its switch script",
			lack: without("roles/agent/intake.go", "if !c.HasSwitch {", "if !LACKS && !c.HasSwitch {"),
			run:  builds("has no bin/switch-to-configuration", func(_ *scene, c *sim.Closure) { c.NoSwitch = true }),
		},
	}
}
