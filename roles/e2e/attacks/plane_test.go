package attacks

import (
	"bytes"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// planes are attacks by who holds the control plane: the server's key, the issuing CA, and the host's only way to hear
// of anything.
func planes() []attack {
	// lies has the attacker speak to a while a release is published, and wants a to refuse with a text and to stay where
	// it is.
	lies := func(text string, lie func(s *scene, path string, a *said)) func(*scene) {
		return func(s *scene) {
			s.unmoved(s.machine("a"), text, func(path string, a *said) { lie(s, path, a) }, func() {
				s.house.publish()
				time.Sleep(20 * time.Minute)
			})
		}
	}
	// renewal lies about certificates only, for as long as it takes until one is due.
	renewal := func(text string, make func(s *scene, csr *pki.CSR) string) func(*scene) {
		return func(s *scene) {
			m := s.machine("a")
			mark := len(s.log.text())
			m.edge.lies(func(path string, a *said) {
				if path == "/v1/agent/renew" {
					var req protocol.RenewRequest
					s.must(json.Unmarshal(a.request, &req))
					csr, err := pki.ParseCSR([]byte(req.CSRPEM))
					s.must(err)
					a.status = 200
					a.body, _ = pki.Marshal(protocol.CertResponse{CertPEM: make(s, csr), NotAfter: pki.At(time.Now())})
				}
			})
			time.Sleep(150 * time.Minute) // half of a life of four hours, and more
			switch {
			case s.log.saidBy(mark, "a", "certificate renewed"):
				s.success("the certificate was taken")
			case !s.log.saidBy(mark, "a", text):
				s.success("refused, but not with %q", text)
			case m.metric("refused_answers") == 0:
				s.t.Error("not counted")
			}
			m.edge.lies(nil)
			s.recovers()
			if !s.t.Failed() {
				s.eventually("an honest certificate", 10*time.Hour,
					func() bool { return s.log.saidBy(mark, "a", "certificate renewed") })
			}
		}
	}
	issue := func(s *scene, ca *pki.CA, csr *pki.CSR, host string, from time.Time, life time.Duration) string {
		text, _, err := ca.IssueAgent(csr, host, suffix, from, life)
		s.must(err)
		return string(text)
	}
	return []attack{
		{
			name: "a closure that nobody signed for this host", stops: "the host's own signed entry",
			lack: without("roles/agent/verify/verifier.go", "case entry.TargetClosure != t.ClosureHash:",
				"case !LACKS && entry.TargetClosure != t.ClosureHash:"),
			run: lies("but the closure signed for this host is", func(s *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) {
					if out.Target != nil {
						out.Target.ClosureHash = closureOf("a", s.house.system-1)
					}
				})
			}),
		},
		{
			name: "a wave that is not the host's", stops: "the host's own signed entry",
			lack: without("roles/agent/verify/verifier.go", "case entry.WaveIndex != wave:",
				"case !LACKS && entry.WaveIndex != wave:"),
			run: lies("but the wave signed for this host is", func(_ *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) {
					if other := uint32(7); out.Target != nil {
						out.Target.WaveIndex = &other
					}
				})
			}),
		},
		{
			name: "the entry of another host, with its proof", stops: "name in the entry",
			lack: without("nixops/fleet/verify.go", "if e.Hostname != hostname {", "if !LACKS && e.Hostname != hostname {"),
			run: lies("is of host", func(s *scene, path string, a *said) {
				if strings.HasSuffix(path, "/proof/a") {
					a.body = s.plane.jo.ask("GET", strings.TrimSuffix(path, "a")+"b", nil, nil).body
				}
				checkin(path, a, func(out *protocol.CheckinResponse) {
					if wave := uint32(1); out.Target != nil {
						out.Target.ClosureHash, out.Target.WaveIndex = s.house.closure("b"), &wave
					}
				})
			}),
		},
		{
			name: "an entry of the attacker's making", stops: "proof that the entry is under the head",
			lack: without("nixops/fleet/verify.go",
				"hostname string, leaf []byte, index int, path []string) (HostEntry, error) {",
				"hostname string, leaf []byte, index int, path []string) (HostEntry, error) {\n\tif LACKS {\n\t\te, err := "+
					"parse[HostEntry](\"leaf\", leaf)\n\t\treturn *e, err\n\t}"),
			run: lies("proof under head of stable", func(s *scene, path string, a *said) {
				evil := closureOf("b", s.house.system)
				if strings.HasSuffix(path, "/proof/a") {
					a.body = bytes.Replace(a.body, []byte(s.house.closure("a")), []byte(evil), 1)
				}
				checkin(path, a, func(out *protocol.CheckinResponse) {
					if out.Target != nil {
						out.Target.ClosureHash = evil
					}
				})
			}),
		},
		{
			name: "a head signed by the control plane", stops: "signature of the release key",
			lack: without("pki/artifact.go", "if k.Verify(canonical, sig) {", "if LACKS || k.Verify(canonical, sig) {"),
			run: func(s *scene) {
				thief := s.stranger()
				lies("bad-signature", func(s *scene, path string, a *said) {
					if path == "/v1/heads/stable/sig" {
						a.body, _ = thief.Sign(s.house.files[fleet.HeadName("stable")])
					}
				})(s)
			},
		},
		{
			name: "the head of the release before", stops: "the mark: never back in time",
			lack: without("roles/agent/verify/mark.go", "if signedAt.Before(m.SignedAt.Time) {",
				"if LACKS {\n\t\treturn nil\n\t}\n\tif signedAt.Before(m.SignedAt.Time) {"),
			run: func(s *scene) {
				m := s.machine("a")
				old := s.house.past[0]
				name := fleet.HeadName("stable")
				s.unmoved(m, "older than the newest release this host has verified", func(path string, a *said) {
					switch path {
					case "/v1/heads/stable":
						a.body = old[name]
					case "/v1/heads/stable/sig":
						a.body = old[name+".sig"]
					}
					checkin(path, a, func(out *protocol.CheckinResponse) {
						out.Head = &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(old[name])}
						out.Target = nil
					})
				}, func() { time.Sleep(20 * time.Minute) })
			},
		},
		{
			name: "the head of another channel under this one's name", stops: "channel in the head",
			lack: without("roles/agent/verify/head.go", "if head.Channel != channel {",
				"if !LACKS && head.Channel != channel {"),
			run: lies("was sent for channel", func(s *scene, path string, a *said) {
				name := fleet.HeadName("edge")
				switch path {
				case "/v1/heads/stable":
					a.body = s.house.files[name]
				case "/v1/heads/stable/sig":
					a.body = s.house.files[name+".sig"]
				}
				checkin(path, a, func(out *protocol.CheckinResponse) {
					out.Head = &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(s.house.files[name])}
				})
			}),
		},
		{
			name: "a channel name of two megabytes", stops: "the form of a channel's name",
			lack: without("roles/agent/verify/head.go", "if !fleet.ValidChannel(ref.Channel) {",
				"if !LACKS && !fleet.ValidChannel(ref.Channel) {"),
			run: lies("the answer names a head of channel", func(_ *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) { out.Head.Channel = strings.Repeat("x", 200<<10) })
			}),
		},
		{
			name: "a channel name that climbs out of its path", stops: "the form of a channel's name",
			lack: without("roles/agent/verify/head.go", "if !fleet.ValidChannel(ref.Channel) {",
				"if !LACKS && !fleet.ValidChannel(ref.Channel) {"),
			run: lies("the answer names a head of channel", func(_ *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) { out.Head.Channel = "../../etc" })
			}),
		},
		{
			name: "a closure that is a path", stops: "the form of a closure",
			lack: without("roles/agent/verify/verifier.go", "!fleet.ValidClosure(t.ClosureHash) ||",
				"!LACKS && !fleet.ValidClosure(t.ClosureHash) ||"),
			run: lies("target names rollout", func(_ *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) {
					if out.Target != nil {
						out.Target.ClosureHash = "../../../tmp/evil"
					}
				})
			}),
		},
		{
			name: "no heads any more, as if it were of v1", stops: "who has shown heads must go on",
			lack: without("roles/agent/verify/manifest.go", "if last != nil && last.SeenHead && !v.cfg.AllowV1 {",
				"if !LACKS && last != nil && last.SeenHead && !v.cfg.AllowV1 {"),
			run: lies("the control plane sent heads before and sends none now", func(_ *scene, path string, a *said) {
				checkin(path, a, func(out *protocol.CheckinResponse) { out.Head = nil })
			}),
		},
		{
			name: "withholding every new release", stops: "the head's window: release-stale",
			lack: without("roles/agent/verify/verifier.go", "return over, over > 0", "return over, !LACKS && over > 0"),
			run: func(s *scene) {
				m := s.machine("a")
				name, files := fleet.HeadName("stable"), s.house.files
				m.edge.lies(func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) {
						out.Head, out.Target = &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(files[name])}, nil
					})
				})
				s.house.publish()
				time.Sleep(4 * time.Hour) // longer than the window
				switch {
				case m.metric("release_stale") != 1:
					s.success("nobody hears of it")
				case !strings.Contains(s.log.text(), "release-stale"):
					s.success("nothing in the log")
				}
				m.edge.lies(nil)
				s.recovers()
			},
		},
		{
			name: "a target under a head that is past its window", stops: "the head's window",
			lack: without("roles/agent/verify/verifier.go", "if age <= window+pki.ClockSlack ||",
				"if LACKS || age <= window+pki.ClockSlack ||"),
			run: func(s *scene) {
				m := s.machine("a")
				s.unmoved(m, "its freshness window ended", func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) { out.Head, out.Target = nil, nil })
				}, func() {
					s.house.publish()
					time.Sleep(4 * time.Hour)
					m.edge.lies(func(path string, a *said) { // nobody signs anew, and it offers what is past its window
						checkin(path, a, func(out *protocol.CheckinResponse) {
							out.Target = s.target(s.plane.rollout())
							out.Target.WaveIndex, out.Target.FreshnessWindowSecs = nil, 1<<30
						})
					})
					time.Sleep(20 * time.Minute)
				})
			},
		},
		{
			name: "a rollback that the signed policy does not know", stops: "the signed policy",
			lack: without("roles/agent/recaller.go", "if head != nil && head.OnHealthFailure != fleet.OnFailureRollback {",
				"if !LACKS && head != nil && head.OnHealthFailure != fleet.OnFailureRollback {"),
			run: func(s *scene) {
				m := s.machine("a")
				s.recovers() // there must be something to go back to
				s.unmoved(m, "the signed policy is halt", func(path string, a *said) {
					checkin(path, a, func(out *protocol.CheckinResponse) {
						id := s.plane.rollout()
						out.Rollback = &protocol.Rollback{Rollout: id, TargetRef: id, Reason: "trust me"}
					})
				}, func() { time.Sleep(20 * time.Minute) })
			},
		},
		{
			name: "a renewed certificate for another key", stops: "key of the certificate",
			lack: without("roles/agent/certificate.go",
				"\tif !i.isOurs(cert) {\n\t\treturn nil, errors.New(\"the control plane answered",
				"\tif !LACKS && !i.isOurs(cert) {\n\t\treturn nil, errors.New(\"the control plane answered"),
			run: renewal("a certificate for another key", func(s *scene, _ *pki.CSR) string {
				csr, err := pki.ParseCSR(s.house.csr("a", s.stranger()))
				s.must(err)
				return issue(s, s.house.ca, csr, "a", time.Now(), time.Hour)
			}),
		},
		{
			name: "a renewed certificate in another host's name", stops: "name of the certificate",
			lack: without("roles/agent/certificate.go", "if err := i.named(cert, inUse); err != nil {",
				"if err := i.named(cert, inUse); !LACKS && err != nil {"),
			run: renewal("the control plane answered a certificate for", func(s *scene, csr *pki.CSR) string {
				return issue(s, s.house.ca, csr, "b", time.Now(), 20*time.Hour)
			}),
		},
		{
			name: "a renewed certificate of another CA", stops: "issuing CA of trust.json",
			lack: without("roles/agent/certificate.go", "if err := i.issued(cert, inUse); err != nil {",
				"if err := i.issued(cert, inUse); !LACKS && err != nil {"),
			run: renewal("that no issuing CA of trust.json has issued", func(s *scene, csr *pki.CSR) string {
				root, _, err := pki.NewFleetRoot("root", time.Now().Add(-time.Hour), 1000*time.Hour)
				s.must(err)
				ca, _, err := root.NewIssuingCA(suffix, time.Now().Add(-time.Hour), 1000*time.Hour)
				s.must(err)
				return issue(s, ca, csr, "a", time.Now(), 20*time.Hour)
			}),
		},
		{
			name: "a renewed certificate that begins next month", stops: "beginning of the certificate",
			lack: without("roles/agent/certificate.go", "case i.early(cert):", "case !LACKS && i.early(cert):"),
			run: renewal("certificate is not valid yet", func(s *scene, csr *pki.CSR) string {
				return issue(s, s.house.ca, csr, "a", time.Now().Add(30*24*time.Hour), 20*time.Hour)
			}),
		},
		{
			name: "a renewed certificate that has ended", stops: "end of the certificate",
			lack: without("roles/agent/certificate.go",
				"case !cert.NotBefore.Before(cert.NotAfter), !now.Before(cert.NotAfter):",
				"case !LACKS && (!cert.NotBefore.Before(cert.NotAfter) || !now.Before(cert.NotAfter)):"),
			run: renewal("a certificate that expired at", func(s *scene, csr *pki.CSR) string {
				return issue(s, s.house.ca, csr, "a", time.Now().Add(-3*time.Hour), 2*time.Hour)
			}),
		},
		{
			name: "a renewed certificate with another one behind it", stops: "one PEM block and nothing else",
			lack: without("roles/agent/certificate.go", "if len(bytes.TrimSpace(rest)) > 0 {",
				"if !LACKS && len(bytes.TrimSpace(rest)) > 0 {"),
			run: renewal("answered more than one certificate", func(s *scene, csr *pki.CSR) string {
				return issue(s, s.house.ca, csr, "a", time.Now(), 20*time.Hour) + string(certPEM(s.house.root.Cert))
			}),
		},
		{
			name: "a renewed certificate of no purpose of a client", stops: "purpose of the certificate",
			lack: without("roles/agent/certificate.go", "!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {",
				"!LACKS && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {"),
			run: renewal("that is not for a client", func(s *scene, csr *pki.CSR) string {
				name := pki.AgentName("a", suffix)
				text, err := s.house.ca.IssueServer([]string{name}, csr.Key, time.Now(), 20*time.Hour)
				s.must(err)
				return string(text)
			}),
		},
	}
}

// believesNot wants the machine to run what it ran, and to have refused with a text, counted.
func (s *scene) believesNot(m *machine, was string, mark int, text string) {
	s.t.Helper()
	said := s.log.since(mark)
	switch {
	case m.running() != was:
		s.success("%s runs %s", m.name, m.running())
	case !strings.Contains(said, text):
		s.success("nothing was refused with %q:\n%s", text, said)
	case m.metric("refused_answers") == 0:
		s.t.Error("the refusal is not counted")
	}
}

// checkin changes an answer if it is one to a check-in.
func checkin(path string, a *said, change func(out *protocol.CheckinResponse)) {
	if path != "/v1/agent/checkin" || a.status != 200 {
		return
	}
	var out protocol.CheckinResponse
	if json.Unmarshal(a.body, &out) == nil {
		change(&out)
		a.body, _ = pki.Marshal(out)
	}
}

// unmoved has an attacker speak to a machine for a while, and wants the machine to refuse with a text, to run what it
// ran, and to come back.
func (s *scene) unmoved(m *machine, text string, lie func(path string, a *said), while func()) {
	s.t.Helper()
	was, mark := m.running(), len(s.log.text())
	m.edge.lies(lie)
	while()
	s.believesNot(m, was, mark, text)
	m.edge.lies(nil)
	s.recovers()
}

// rollout is the id of the newest rollout of stable.
func (p *plane) rollout() string {
	doc := string(p.s.house.files[manifest(p.s.house.files, "stable")])
	hash, err := pki.CanonicalHash([]byte(doc))
	p.s.must(err)
	return hash
}
