package agent

import (
	"context"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

// runSimulated does what a real machine does around its agent: its deadline runs
// by itself, and a reboot ends the agent and starts, after the guard, another.
func runSimulated(ctx context.Context, cfg Config, machine *sim.Host) error {
	machine.OnDeadline(func(d nixops.Deadline) {
		if err := Deadline(ctx, cfg, d.Unit); err != nil {
			cfg.Log.Error().Err(err).Msg("undo failed")
		}
	})
	for {
		booted, cancel := context.WithCancel(ctx)
		machine.OnBoot(func(string) { cancel() })
		err := Run(booted, cfg)
		again := booted.Err() != nil && ctx.Err() == nil
		cancel()
		if !again {
			return err
		}
		if err := Guard(ctx, cfg); err != nil {
			cfg.Log.Error().Err(err).Msg("guard failed")
		}
	}
}
