package nixops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Changes are the units that a run of switch-to-configuration touched, or would touch, as it says itself. The names are
// sorted. Targets are left out by the script.
type Changes struct {
	Stopped   []string `json:"stopped"`
	Skipped   []string `json:"skipped"` // changed, and left running
	Reloaded  []string `json:"reloaded"`
	Restarted []string `json:"restarted"`
	Started   []string `json:"started"`
	Failed    []string `json:"failed"`
}

// changeLines are how the lines begin by which the script names units. A dry run says "would" before it.
func (c *Changes) changeLines() []struct {
	begins string
	units  *[]string
} {
	return []struct {
		begins string
		units  *[]string
	}{
		{"stopping the following units: ", &c.Stopped}, {"stop the following units: ", &c.Stopped},
		{"NOT restarting the following changed units: ", &c.Skipped}, {"NOT stop the following units: ", &c.Skipped},
		{"NOT stop the following changed units: ", &c.Skipped},
		{"NOT restart the following changed units: ", &c.Skipped},
		{"reloading the following units: ", &c.Reloaded}, {"reload the following units: ", &c.Reloaded},
		{"restarting the following units: ", &c.Restarted}, {"restart the following units: ", &c.Restarted},
		{"starting the following units: ", &c.Started}, {"start the following units: ", &c.Started},
		{"the following new units were started: ", &c.Started},
		{"the following units failed: ", &c.Failed},
	}
}

// ChangesOf reads what a run of switch-to-configuration wrote (nixpkgs, switch-to-configuration-ng at
// 0145c6da2896513d94440e7fb41c11487aa3de16). It ignores every other line, and names that no unit has.
func ChangesOf(output string) Changes {
	c := Changes{
		Stopped: []string{}, Skipped: []string{}, Reloaded: []string{}, Restarted: []string{}, Started: []string{},
		Failed: []string{},
	}
	lines := c.changeLines()
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(strings.TrimPrefix(line, "warning: "), "would ")
		for _, l := range lines {
			names, ok := strings.CutPrefix(line, l.begins)
			if !ok {
				continue
			}
			for _, name := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' }) {
				if CheckAnyUnit(name) == nil && !strings.HasSuffix(name, ".target") {
					*l.units = append(*l.units, name)
				}
			}
			break
		}
	}
	for _, l := range lines {
		slices.Sort(*l.units)
		*l.units = slices.Compact(*l.units)
	}
	return c
}

// String names the changes in one line, for example "stopped a.service; started b.service". It is "" if there are none.
func (c Changes) String() string {
	return c.text("stopped", "kept", "reloaded", "restarted", "started", "failed")
}

// Would names the changes that are still to come.
func (c Changes) Would() string {
	return c.text("would stop", "would keep", "would reload", "would restart", "would start", "failed")
}

// mostNamed is how many units of a kind a text names.
const mostNamed = 20

func (c Changes) text(words ...string) string {
	var parts []string
	for i, units := range [][]string{c.Stopped, c.Skipped, c.Reloaded, c.Restarted, c.Started, c.Failed} {
		if len(units) == 0 {
			continue
		}
		part := words[i] + " " + strings.Join(units[:min(len(units), mostNamed)], " ")
		if more := len(units) - mostNamed; more > 0 {
			part += fmt.Sprintf(" and %d more", more)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// ErrCut means that only the end of a long list of units could be read.
var ErrCut = errors.New("the list of units is too long, its beginning is left out")

// previewTime bounds a dry run, which syncs the store and runs the closure's own pre-switch checks.
const previewTime = 5 * time.Minute

// Preview returns what a live switch of the host to a closure of its store would do to units, and changes nothing. It
// returns ErrLockHeld if another switch runs. A closure whose checks refuse the switch is an error. With ErrCut it
// returns what it could read.
func Preview(ctx context.Context, h Host, closure, unit string) (Changes, error) {
	ctx, cancel := context.WithTimeout(ctx, previewTime)
	defer cancel()
	exit, err := h.Switch(ctx, SwitchRequest{Closure: closure, Action: ActionDryActivate, Unit: unit})
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, h.StopUnit(context.WithoutCancel(ctx), unit))
		}
		return Changes{}, err
	}
	output := ""
	// The journal may have the output a little after the unit has ended.
	err = wait(ctx, wordsTime, func() (bool, error) {
		before := output
		var err error
		output, err = h.UnitOutput(ctx, unit)
		return output != "" && output == before, err
	})
	if err != nil && !errors.Is(err, errWaited) {
		return Changes{}, fmt.Errorf("preview %s: %w", closure, err)
	}
	if !exit.OK() {
		return Changes{}, fmt.Errorf("preview %s: %s: %s", closure, exit, strings.TrimSpace(output))
	}
	if len(output) >= MaxOutput {
		err = ErrCut
	} else {
		err = nil
	}
	return ChangesOf(output), err
}
