// Package tick is the control plane's decision without a control plane: it
// verifies a release, reads v1's observed.json, and prints what would be decided
// now. It writes no file and opens no connection.
package tick

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/protocol"
)

// Command is `nixfleet cp tick`.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "tick",
		Usage: "verify a release and print what would be decided now, as JSON lines",
		Description: "Exit 0 planned, 1 the release did not verify, 2 the input could not be read.\n\n" +
			"Example:\n   nixfleet cp tick --artifact releases/fleet.resolved.json \\\n" +
			"     --signature releases/fleet.resolved.json.sig \\\n" +
			"     --trust-file trust.json --observed observed.json",
		Flags: command.Variables("NIXFLEET_CP",
			&cli.StringFlag{Name: "artifact", Usage: "fleet document `FILE`"},
			&cli.StringFlag{Name: "signature", Usage: "its signature `FILE`"},
			&cli.StringFlag{Name: "trust-file", Value: "/etc/nixfleet/cp/trust.json", Usage: "trust roots `FILE`"},
			&cli.StringFlag{Name: "observed", Usage: "observed state `FILE`"},
			&cli.IntFlag{Name: "freshness-window-secs", Value: 2592000,
				Usage: "age of the oldest release that is accepted, in seconds"},
		),
		Action: func(c *cli.Context) error { return tick(c, time.Now()) },
	}
}

func tick(c *cli.Context, now time.Time) error {
	if err := command.Needs(c, "artifact", "signature", "observed"); err != nil {
		return err
	}
	input := func(err error) error {
		return &command.Error{Err: err, Code: 2, Hint: cmp.Or(command.HintOf(err), "nixfleet cp tick --help")}
	}
	window := command.Seconds(c.Int("freshness-window-secs"))
	if window > command.LongestTime {
		return input(fmt.Errorf("--freshness-window-secs must be at most %d", command.LongestTime/time.Second))
	}
	trust, warnings, err := pki.LoadTrust(c.String("trust-file"))
	if err != nil {
		return input(err)
	}
	for _, w := range warnings {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s: %s\n", c.String("trust-file"), w)
	}
	doc, err := os.ReadFile(c.String("observed"))
	if err != nil {
		return input(err)
	}
	var o observed
	if err := pki.Decode(doc, &o); err != nil {
		return input(fmt.Errorf("observed state: %w", err))
	}
	files, err := tickFiles(c.String("artifact"), c.String("signature"))
	if err != nil {
		return input(err)
	}
	rel, err := fleet.LoadRelease(files, fleet.LoadOptions{
		Trust: trust, Now: now, Window: window, ManifestsElsewhere: true,
	})
	out := lines{c.App.Writer}
	if err != nil {
		reason := pki.ReasonMismatch
		if refused := (*pki.VerifyError)(nil); errors.As(err, &refused) {
			reason = refused.Reason
		}
		if err := out.write(struct {
			Event  string              `json:"event"`
			OK     bool                `json:"verify_ok"`
			Now    protocol.OffsetTime `json:"now"`
			Reason pki.Reason          `json:"reason"`
		}{"tick", false, protocol.Offset(now), reason}); err != nil {
			return err
		}
		err = fmt.Errorf("release not accepted: %w", err)
		return &command.Error{Err: err, Code: 1, Hint: cmp.Or(command.HintOf(err), "nixfleet verify artifact --help")}
	}
	actions := tickActions(rel, trust, &o, now)
	signed := protocol.Offset(rel.SignedAt)
	if err := out.write(struct {
		Event    string              `json:"event"`
		OK       bool                `json:"verify_ok"`
		Now      protocol.OffsetTime `json:"now"`
		SignedAt protocol.OffsetTime `json:"signed_at"`
		Commit   *string             `json:"ci_commit"`
		Channels int                 `json:"channels_observed"`
		Active   int                 `json:"active_rollouts"`
		Actions  int                 `json:"actions"`
	}{"tick", true, protocol.Offset(now), signed, commitOf(rel), len(o.ChannelRefs), len(o.ActiveRollouts),
		len(actions)}); err != nil {
		return err
	}
	for _, a := range actions {
		if err := out.write(a); err != nil {
			return err
		}
	}
	return nil
}

// commitOf is nil for a release that was made outside a checkout.
func commitOf(rel *fleet.Release) *string {
	if rel.Commit == "" {
		return nil
	}
	return &rel.Commit
}

// lines writes JSON lines.
type lines struct{ io.Writer }

func (l lines) write(v any) error {
	doc, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(l, "%s\n", doc)
	}
	return err
}

// tickFiles is the pair under its usual names, with the manifests and heads
// beside it.
func tickFiles(artifact, signature string) (fs.FS, error) {
	beside := source.Dir(filepath.Dir(artifact))
	body, err := beside.ReadFile(filepath.Base(artifact))
	if err != nil {
		return nil, err
	}
	sig, err := source.Dir(filepath.Dir(signature)).ReadFile(filepath.Base(signature))
	if err != nil {
		return nil, err
	}
	return source.Layers{source.Memory{fleet.FleetName: body, fleet.FleetName + fleet.SignatureSuffix: sig}, beside}, nil
}
