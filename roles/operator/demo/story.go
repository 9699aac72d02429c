package demo

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// chapters are the story, in order.
func (s *story) chapters() []chapter {
	canary := "web-01"
	revoked := "web-02"
	return []chapter{
		{"enrolment", "1. Hosts enrol, each with a token of its own", s.enrolment},
		{"converge", "2. Release 1 reaches every host", func(ctx context.Context) error {
			return s.converged(ctx, 1)
		}},
		{"canary", "3. Release 2 goes to the canary first, soaks, then to the rest",
			func(ctx context.Context) error { return s.canaryFirst(ctx, canary) }},
		{"halt", "4. Release 3, for channel stable only, breaks the canary, which returns by itself; the rollout halts",
			func(ctx context.Context) error { return s.broken(ctx, canary) }},
		{"repair", "5. Release 4 repairs it", func(ctx context.Context) error {
			if err := s.publish(ctx, func(string) int { return 4 }, 4, false); err != nil {
				return err
			}
			return s.converged(ctx, 4)
		}},
		{"revocation", "6. A revoked host is shut out, and comes back with a new token",
			func(ctx context.Context) error { return s.revocation(ctx, revoked) }},
		{"recovery", "7. The control plane's database is deleted, and the view of the fleet is back", s.recovery},
	}
}

func (s *story) enrolment(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	s.view.Say("made the keys, a git forge, and %d machines in two channels, %s", s.hosts, s.machines)
	// Release 1 declares the hosts; their keys are part of it.
	if err := s.publish(ctx, func(string) int { return 1 }, 1, false); err != nil {
		return err
	}
	if err := s.startControlPlane(ctx); err != nil {
		return err
	}
	s.view.Say("the control plane listens on https://%s and took release 1 from git", s.address)
	for _, name := range s.names {
		if err := s.mint(ctx, name); err != nil {
			return err
		}
		if err := s.startAgent(ctx, name); err != nil {
			return err
		}
	}
	if err := s.all(ctx, "every host has enrolled and checked in",
		func(h protocol.HostEntry) bool { return h.LastCheckinAt != nil }); err != nil {
		return err
	}
	s.view.Say("every host has enrolled with its own token, and checks in")
	return nil
}

func (s *story) converged(ctx context.Context, n int) error {
	err := s.all(ctx, fmt.Sprintf("every host runs release %d", n), func(h protocol.HostEntry) bool {
		return h.Converged &&
			runs(h, n)
	})
	if err == nil {
		err = s.over(ctx)
	}
	if err == nil {
		s.view.Say("every host runs release %d: verified, activated, proven, confirmed", n)
	}
	return err
}

// over waits until no rollout is under way.
func (s *story) over(ctx context.Context) error {
	return s.until(ctx, "the rollouts are over", func() (bool, error) {
		open, err := s.client.Rollouts(ctx, client.RolloutsQuery{})
		return err == nil && len(open.Rollouts) == 0, nil
	})
}

func (s *story) canaryFirst(ctx context.Context, canary string) error {
	if err := s.publish(ctx, func(string) int { return 2 }, 2, false); err != nil {
		return err
	}
	var canaryAt, restAt time.Time
	err := s.until(ctx, "the canary runs release 2 before the rest", func() (bool, error) {
		for _, name := range s.names[:s.stable()] {
			switch h := s.host(name); {
			case !runs(h, 2):
			case name == canary && canaryAt.IsZero():
				canaryAt = time.Now()
				s.view.Say("%s runs release 2 and soaks; the rest of its channel waits", canary)
			case name != canary && canaryAt.IsZero():
				return false, fmt.Errorf("%s ran release 2 before the canary", name)
			case name != canary && restAt.IsZero():
				restAt = time.Now()
			}
		}
		return !restAt.IsZero(), nil
	})
	if err != nil {
		return err
	}
	if soaked := restAt.Sub(canaryAt); soaked < time.Second {
		return fmt.Errorf("the rest followed after %s, the soak is 2 s", soaked)
	}
	s.view.Say("the soak is over; the rest follows")
	return s.converged(ctx, 2)
}

func (s *story) broken(ctx context.Context, canary string) error {
	// Channel edge stays at release 2: only stable is broken.
	if err := s.breakStable(ctx, 3); err != nil {
		return err
	}
	if err := s.until(ctx, canary+" is back on release 2", func() (bool, error) {
		return runs(s.host(canary), 2),
			nil
	}); err != nil {
		return err
	}
	s.view.Say("%s saw %s fail, undid the switch, reported, and is back on release 2", canary, failingUnit)
	for _, name := range s.names {
		if !runs(s.host(name), 2) {
			return fmt.Errorf("%s does not run release 2 although release 3 had broken the canary", name)
		}
	}
	why, err := s.client.Explain(ctx, s.names[1])
	if err != nil {
		return err
	}
	s.view.Say("%s waits: %s", s.names[1], why.Reason.Text)
	return nil
}

func (s *story) revocation(ctx context.Context, name string) error {
	// A certificate of this very second would outlive its revocation.
	if _, err := s.command(ctx, "revoke", "--reason", "demonstration", name); err != nil {
		return err
	}
	plane, err := s.asHost(name)
	if err != nil {
		return err
	}
	if err := s.until(ctx, name+" is refused", func() (bool, error) {
		_, err := plane.Whoami(ctx)
		var refused *client.Error
		return errors.As(err, &refused) && refused.Status == 401, nil
	}); err != nil {
		return err
	}
	s.view.Say("%s is refused: its certificate is revoked", name)
	at := time.Now()
	if err := sleepUntil(ctx, at.Add(1100*time.Millisecond)); err != nil {
		return err
	}
	if err := s.mint(ctx, name); err != nil {
		return err
	}
	s.view.Say("minted a new token for %s", name)
	if err := s.until(ctx, name+" is back", func() (bool, error) {
		h := s.host(name)
		return h.LastCheckinAt != nil && h.LastCheckinAt.After(at), nil
	}); err != nil {
		return err
	}
	s.view.Say("%s has enrolled anew, and checks in", name)
	return nil
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-time.After(time.Until(t)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// asHost speaks with a host's own certificate.
func (s *story) asHost(name string) (*client.Client, error) {
	key, err := pki.ReadPrivateKey(s.path("hosts", name, "ssh_host_ed25519_key"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(s.path("hosts", name, "agent-cert.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate of " + name)
	}
	return s.clientOf(&tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key.Crypto()})
}

func (s *story) recovery(ctx context.Context) error {
	s.stopCP()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(s.path("cp", "state.db"+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	s.view.Say("stopped the control plane and deleted state.db")
	at := time.Now()
	if err := s.startControlPlane(ctx); err != nil {
		return err
	}
	if err := s.all(ctx, "every host is seen again", func(h protocol.HostEntry) bool {
		return h.Converged && h.LastCheckinAt != nil && h.LastCheckinAt.After(at)
	}); err != nil {
		return err
	}
	s.view.Say("every host is seen again %s after the start", time.Since(at).Round(100*time.Millisecond))
	return nil
}
