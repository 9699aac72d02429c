package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// beta signs a head of a channel that the host is not in, with the time of the newest
// release, and has the control plane name it in place of the host's own.
func (p *plane) beta(signed time.Time, window uint32) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	head, err := fleet.ParseHead(p.head)
	if err != nil {
		p.t.Fatal(err)
	}
	at := pki.At(signed.Truncate(time.Second))
	head.Channel, head.Intent, head.FreshnessWindow, head.Meta.SignedAt = "beta", strings.Repeat("b", 64), window, &at
	own, sig := p.head, p.headSig
	p.sign(head)
	p.foreign = [2][]byte{p.head, p.headSig}
	p.head, p.headSig = own, sig
	p.tamper = func(r *protocol.CheckinResponse) {
		r.Head, r.Target = &protocol.HeadRef{Channel: "beta", Hash: pki.HashHex(p.foreign[0])}, nil
	}
}

// The head of another channel is as well signed. It neither ends root's hold, nor moves
// the mark past the host's own head, nor hides that this is withheld.
func TestHeadOfAnotherChannelSaysNothingHere_T15_T17(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		m.types("activate", "/nix/store/"+before)
		time.Sleep(10 * time.Second)
		p.beta(time.Now(), 1<<20)
		time.Sleep(30 * time.Minute)
		if m.where() != all(before) || !strings.Contains(m.local().Held, holdActivated) {
			t.Errorf("at %v, held %q", m.where(), m.local().Held)
		}
		time.Sleep(3 * time.Hour)
		if !strings.Contains(m.local().Stale, "release-stale") {
			t.Errorf("stale: %q", m.local().Stale)
		}
		p.set(func() { p.tamper = nil })
		p.release(another, time.Now().Add(-time.Hour))
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(another) {
			t.Errorf("its own channel again: at %v", m.where())
		}
	})
}

// A control plane that shows no head any more withholds, also from an agent that was
// started anew.
func TestWithholdingIsVisibleAfterARestart_T17(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		p.set(func() { p.tamper = func(r *protocol.CheckinResponse) { r.Head, r.Target = nil, nil } })
		stop = m.start(m.sim)
		time.Sleep(3 * time.Hour)
		stop()
		if !strings.Contains(m.local().Stale, "release-stale") || !strings.Contains(p.acts(), protocol.KindReleaseStale) {
			t.Errorf("status says %q, reports %s", m.local().Stale, p.acts())
		}
	})
}

// A release that was verified by its manifest is the same release by its head.
func TestHeadOfTheReleaseThatWasKnownByItsManifest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		p.set(func() { p.v1 = nil })
		time.Sleep(5 * time.Minute)
		last, err := (verify.Marks{State: journal.Directory(m.path("state")),
			Outside: journal.Directory(m.path("cert"))}).Load()
		if err != nil || !last.SeenHead || last.Closure != target || p.reported(protocol.EventManifestVerifyFailed) {
			t.Errorf("mark %+v, %v; reports %v", last, err, p.said())
		}
		stop()
	})
}

// swapped is a control plane that gets a new release between two requests.
type swapped struct {
	heads [][2][]byte
	proof protocol.Proof
}

func (s *swapped) Head(context.Context, string) (body, sig []byte, err error) {
	h := s.heads[0]
	if len(s.heads) > 1 {
		s.heads = s.heads[1:]
	}
	return h[0], h[1], nil
}
func (s *swapped) HeadProof(context.Context, string, string) (*protocol.Proof, error) {
	return &s.proof, nil
}
func (s *swapped) Manifest(context.Context, string) (body, sig []byte, err error) {
	return nil, nil, errors.New("never fetched")
}

// A release that comes in the middle of a check-in is not a lie, and is not reported as one.
func TestReleaseThatComesMeanwhileIsNoLie(t *testing.T) {
	for name, c := range map[string]struct {
		heads []int // in the order they are served
		named int   // by the answer
		lie   bool
	}{
		"before the head": {[]int{1}, 0, false},
		"after the head":  {[]int{0, 1}, 0, false},
		"a wrong proof":   {[]int{0}, 0, true},
		"another rollout": {[]int{1}, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			a, err := newAgent(m.config(m.sim))
			m.must(err)
			defer a.client.CloseIdle()
			releases := [][2][]byte{{p.head, p.headSig}}
			first := &protocol.Target{ClosureHash: target, ChannelRef: p.id, RolloutID: p.id}
			m.must(a.dir.Write(verify.MarkFile,
				&verify.Mark{SignedAt: pki.At(time.Unix(1, 0)), SeenHead: true, Channel: "stable"}))
			p.release(another, time.Now().Add(time.Second))
			releases = append(releases, [2][]byte{p.head, p.headSig})
			s := &swapped{proof: p.proof}
			for _, i := range c.heads {
				s.heads = append(s.heads, releases[i])
			}
			ref := &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(releases[c.named][0])}
			m.must(a.loop.answers.verifier.UpdateHead(context.Background(), s, ref))
			_, err = a.loop.answers.verifier.Target(context.Background(), s, first, ref, time.Now())
			if lie := err != nil && !errors.Is(err, verify.ErrReplaced); lie != c.lie || err == nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}
