package attacks

import (
	"bytes"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// rollsBack is a fleet whose policy takes failures back, so that a rollback may be asked for at all.
func (s *scene) rollsBack() {
	p := s.house.fleet.RolloutPolicies["p"]
	p.OnHealthFailure = fleet.OnFailureRollback
	s.house.fleet.RolloutPolicies["p"] = p
	s.house.inForce()
}

// morePlanes are attacks by who holds the control plane or stands in its place.
func morePlanes() []attack {
	// unheard wants a machine to have had no contact while the attacker spoke, with a text in its log, and to come back.
	unheard := func(text string, lie func(s *scene, m *machine)) func(*scene) {
		return func(s *scene) {
			m := s.machine("a")
			was, mark := m.running(), len(s.log.text())
			lie(s, m)
			s.house.publish()
			time.Sleep(30 * time.Minute)
			switch {
			case m.running() != was:
				s.success("%s runs %s", m.name, m.running())
			case !s.log.saidBy(mark, "a", text):
				s.success("nothing was refused with %q", text)
			case m.metric("last_contact_timestamp_seconds") > float64(time.Now().Add(-20*time.Minute).Unix()):
				s.t.Error("the metric of the last contact does not show it")
			}
			m.edge.lies(nil)
			s.recovers()
		}
	}
	believes := func(text string, lie func(s *scene, path string, a *said)) func(*scene) {
		return func(s *scene) {
			m := s.machine("a")
			s.recovers()
			time.Sleep(10 * time.Minute) // until what it runs is committed
			s.unmoved(m, text, func(path string, a *said) { lie(s, path, a) }, func() { time.Sleep(20 * time.Minute) })
		}
	}
	return []attack{
		{
			name: "an answer that is not JSON", stops: "the form of an answer",
			lack: without("roles/protocol/client/client.go", "if err := protocol.DecodeKnown(answer, out); err != nil {",
				"if err := protocol.DecodeKnown(answer, out); !LACKS && err != nil {"),
			run: unheard("check-in failed", func(_ *scene, m *machine) {
				m.edge.lies(func(path string, a *said) {
					if path == "/v1/agent/checkin" {
						a.body = []byte(`{"nextCheckinSecs":60,`)
					}
				})
			}),
		},
		{
			name: "an answer of twenty megabytes", stops: "the bound of an answer",
			lack: without("roles/protocol/client/client.go", "if int64(len(data)) > limit {",
				"if !LACKS && int64(len(data)) > limit {"),
			run: unheard("too large", func(_ *scene, m *machine) {
				m.edge.lies(func(path string, a *said) {
					if path == "/v1/agent/checkin" {
						a.body = append(a.body, bytes.Repeat([]byte(" "), 20<<20)...)
					}
				})
			}),
		},
		{
			name: "a target of another rollout than the head's", stops: "rollout in the signed head",
			lack: without("roles/agent/verify/head.go", "if head == nil || head.RolloutID != t.RolloutID {",
				"if head == nil || !LACKS && head.RolloutID != t.RolloutID {"),
			run: believes("which is not that of the head", func(s *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) { out.Target = s.target(strings.Repeat("a", 64)) })
			}),
		},
		{
			name: "a rollout id that is a path", stops: "the form of a rollout id",
			lack: without("roles/agent/verify/verifier.go", "if !fleet.ValidRolloutID(t.RolloutID) ||",
				"if !LACKS && !fleet.ValidRolloutID(t.RolloutID) ||"),
			run: believes("target names rollout", func(s *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) { out.Target = s.target("../../../etc/shadow") })
			}),
		},
		{
			name: "a reference of sixty kilobytes", stops: "the bound of a reference",
			lack: without("roles/agent/verify/verifier.go",
				"protocol.Clip(t.ChannelRef, MaxReference) != t.ChannelRef {",
				"!LACKS && protocol.Clip(t.ChannelRef, MaxReference) != t.ChannelRef {"),
			run: believes("target names rollout", func(s *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) {
					out.Target = s.target(s.plane.rollout())
					out.Target.ChannelRef = strings.Repeat("x", 60<<10)
				})
			}),
		},
		{
			name: "a rollback of a rollout that the head does not name", stops: "intent in the signed head",
			lack: without("roles/agent/recaller.go", "case head != nil && head.Intent != j.Intent:",
				"case !LACKS && head != nil && head.Intent != j.Intent:"),
			run: func(s *scene) {
				s.rollsBack()
				m := s.machine("a")
				s.recovers()
				// It withholds the target of the next release, whose head the host has.
				s.unmoved(m, "the head names another rollout than the one that this host runs", func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) {
						out.Target = nil
						out.Rollback = &protocol.Rollback{Rollout: s.plane.rollout(), TargetRef: "x", Reason: "trust me"}
					})
				}, func() {
					s.house.publish()
					time.Sleep(30 * time.Minute)
				})
			},
		},
		{
			name: "a rollback long after the commit", stops: "the head's window, from the commit on",
			lack: without("roles/agent/recaller.go", "if c.clock.now().Sub(last.At.Time) > window {",
				"if !LACKS && c.clock.now().Sub(last.At.Time) > window {"),
			run: func(s *scene) {
				s.rollsBack()
				m := s.machine("a")
				s.recovers()
				time.Sleep(4 * time.Hour)
				s.unmoved(m, "the commit is older than the freshness window", func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) {
						out.Rollback = &protocol.Rollback{Rollout: s.plane.rollout(), TargetRef: "x", Reason: "trust me"}
					})
				}, func() { time.Sleep(20 * time.Minute) })
			},
		},
		{
			name: "never to ask again", stops: "the longest pause between two check-ins",
			lack: without("roles/agent/loop.go", "next = max(min(next, l.cfg.PollInterval), floorPause)",
				"if LACKS {\n\t\treturn time.Duration(answer.NextCheckinSecs) * time.Second, nil\n\t}\n\t"+
					"next = max(min(next, l.cfg.PollInterval), floorPause)"),
			run: func(s *scene) {
				m := s.machine("a")
				m.edge.lies(func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) { out.NextCheckinSecs = 1 << 31 })
				})
				time.Sleep(5 * time.Minute)
				m.edge.lies(nil)
				s.house.publish()
				time.Sleep(30 * time.Minute)
				if m.running() != s.house.closure("a") {
					s.success("%s does not ask any more", m.name)
				}
				s.recovers()
			},
		},
	}
}

// target is an offer of what a host shall run, under a rollout.
func (s *scene) target(rollout string) *protocol.Target {
	wave := uint32(0)
	return &protocol.Target{ClosureHash: s.house.closure("a"), RolloutID: rollout, ChannelRef: rollout, WaveIndex: &wave,
		EvaluatedAt: pki.At(time.Now()), SignedAt: pki.At(time.Now()), FreshnessWindowSecs: 7200,
		Activate: &protocol.Activate{ConfirmWindowSecs: 360, ConfirmEndpoint: protocol.ConfirmPath}}
}
