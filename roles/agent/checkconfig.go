package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
)

// checkConfig finds what an agent with this configuration would not start
// with, all of it at once, and changes nothing.
func checkConfig(c *cli.Context, cfg *Config) error {
	if err := cfg.complete(); err != nil {
		return &command.Error{Err: fmt.Errorf("configuration: %w", err), Hint: "nixfleet agent run --help"}
	}
	if err := cfg.makeHost(); err != nil {
		return &command.Error{Err: fmt.Errorf("configuration: %w", err), Hint: "nixfleet agent run --help"}
	}
	if policy, err := parseRebootPolicy(cfg.RebootPolicy); err != nil {
		return err
	} else if err := policy.check(c.Context, cfg.Host); err != nil {
		return err
	}
	if err := cfg.warnSkipped(c.Context, c.App.ErrWriter); err != nil {
		return err
	}
	if err := cfg.readable(); err != nil {
		return &command.Error{Err: fmt.Errorf("configuration: %w", err),
			Hint: "the files must be there when the agent starts"}
	}
	if err := cfg.warnUnpinned(c.App.ErrWriter); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, "configuration is good")
	return err
}

// warnSkipped says when the reboot window does not come.
func (c *Config) warnSkipped(ctx context.Context, w io.Writer) error {
	policy, err := parseRebootPolicy(c.RebootPolicy)
	if err != nil || policy.mode != rebootWindow {
		return err
	}
	if day, ok := policy.skipped(ctx, c.Host, time.Now()); ok {
		_, err = fmt.Fprintf(w, "warning: the reboot window %q does not come on %s: the clock is set forward over it\n"+
			"hint: name a time that every day has, or a zone, as in 'Sun 02:30 UTC'\n", policy.window,
			day.UTC().Format(time.DateOnly))
	}
	return err
}

// warnUnpinned says what a renewal cannot be held against.
func (c *Config) warnUnpinned(w io.Writer) error {
	trust, err := verify.NewTrustFile(c.TrustFile, zerolog.Nop()).Read()
	if err != nil {
		return err
	}
	if pinned, err := issuingCAs(trust); err != nil || pinned != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "warning: %s pins no issuing CA: a renewed certificate is compared by the names of its "+
		"issuer only, which a control plane can forge\n"+
		"hint: name the CA in nixfleet.trust.issuanceCAPems; nixfleet init does\n", c.TrustFile)
	return err
}

// readable reads the files that must be there at the start as the agent will.
func (c *Config) readable() error {
	roots, trust := verify.NewTrustFile(c.TrustFile, zerolog.Nop()).Read()
	if trust == nil {
		_, trust = issuingCAs(roots)
	}
	_, client := newClient(c, &clock{own: time.Now, started: time.Now()}, nil)
	_, key := pki.ReadPrivateKey(c.ClientKey)
	return errors.Join(trust, client, key)
}

func guardCommand(c *cli.Context) error {
	if !c.Bool("check-config") {
		return inState(c, func(h hand) error {
			if c.Bool("boot-complete") {
				return h.BootComplete(c.Context)
			}
			return h.Guard(c.Context)
		})
	}
	cfg := Config{hostConfig: hostConfigOf(c, newLogger(c.App.ErrWriter, zerolog.InfoLevel)),
		simulated: c.String("simulated-host"), simulatedIn: c.String("simulated-cache")}
	if c.String("state-dir") == "" {
		return &command.Error{Err: errors.New("configuration: --state-dir is needed"), Hint: "nixfleet agent guard --help"}
	}
	if err := cfg.makeHost(); err != nil {
		return &command.Error{Err: fmt.Errorf("configuration: %w", err), Hint: "nixfleet agent guard --help"}
	}
	_, err := fmt.Fprintln(c.App.Writer, "configuration is good")
	return err
}
