package agent

import (
	"os"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// fresh signs the head in force once more, with a freshness window of so many minutes.
func (p *plane) fresh(minutes uint32) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	head, err := fleet.ParseHead(p.head)
	if err != nil {
		p.t.Fatal(err)
	}
	head.FreshnessWindow = minutes
	p.sign(head)
}

// certify gives the machine a certificate that begins now, and pins the CA that issued it.
func (m *machine) certify() {
	m.t.Helper()
	m.pin(m.p.issuing.Cert)
	csrText, err := pki.NewCSR(m.p.hostKey.Crypto(), testHost)
	m.must(err)
	csr, err := pki.ParseCSR(csrText)
	m.must(err)
	m.must(os.WriteFile(m.path("cert/agent.pem"),
		[]byte(m.p.cert(m.p.issuing, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)), 0o600))
}

// marks are both copies of the machine's mark.
func (m *machine) marks() verify.Marks {
	return verify.Marks{State: journal.Directory(m.path("state")), Outside: journal.Directory(m.path("cert"))}
}

// Both marks are lost, and the clock is set back to when an old release was fresh. What
// others have signed since tells that its window has ended.
func TestOldReleaseAfterBothMarksAreLost_T15(t *testing.T) {
	const between = 30 * 24 * time.Hour
	for name, lose := range map[string]func(m *machine){
		"marks alone": func(m *machine) { m.must(m.marks().Reset()) },
		"state directory, renewed meanwhile": func(m *machine) {
			m.certify()
			m.must(os.RemoveAll(m.path("state")))
			m.must(os.Remove(m.path("cert/" + verify.MarkFile)))
			m.stateDirectory()
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, good)
				old := time.Now()
				time.Sleep(between)
				p.release(another, time.Now())
				stop := m.start(m.sim)
				time.Sleep(5 * time.Minute)
				stop()
				if m.where() != all(another) {
					t.Fatalf("at %v", m.where())
				}
				lose(m)
				m.adjust = func(c *Config) { c.Clock = func() time.Time { return time.Now().Add(-between) } }
				p.release(target, old)
				stop = m.start(m.sim)
				time.Sleep(20 * time.Minute)
				stop()
				if mark, err := m.marks().Load(); m.where() != all(another) || mark != nil || err != nil {
					t.Errorf("at %v, mark %+v, %v", m.where(), mark, err)
				}
				if !p.reported(protocol.EventManifestVerifyFailed) {
					t.Errorf("reports %v", p.said())
				}
			})
		})
	}
}

// A release that was signed before a host's certificate began, and is in force, is taken.
func TestReleaseOfYesterdayIsTakenWithoutAMark_T15(t *testing.T) {
	for name, harm := range map[string]func(m *machine){
		"new host":     func(m *machine) { m.certify() },
		"renewed host": func(m *machine) { m.certify(); m.stateDirectory(); m.must(m.marks().Reset()) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, good)
				p.fresh(2 * 24 * 60)
				time.Sleep(24 * time.Hour)
				harm(m)
				stop := m.start(m.sim)
				time.Sleep(5 * time.Minute)
				stop()
				if m.where() != all(target) {
					t.Errorf("at %v, status %+v", m.where(), m.local())
				}
			})
		})
	}
}
