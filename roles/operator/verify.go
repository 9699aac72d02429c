package operator

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// allRequired is what nixfleet-verify-artifact, the name that v1 scripts use,
// stands for: nothing is judged by a default that the script did not ask for.
const allRequired = "all-required"

func verifyCommand() *cli.Command {
	const exits = "Exit 0: verified; 1: not verified; 2: arguments, unreadable file or bad trust file.\n\n"
	artifact := func(name, file, what, example string, extra []cli.Flag, action func(*cli.Context, *evidence) (any, string,
		error)) *cli.Command {
		flags := []cli.Flag{
			&cli.StringFlag{Name: file, Usage: "`FILE` to verify"},
			&cli.StringFlag{Name: "signature", Usage: "its signature `FILE` (default: the same name with .sig)"},
			&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"}, Usage: "trust.json `FILE`"},
			&cli.StringFlag{Name: "now", Usage: "`TIME` to judge its age at, RFC 3339 (default: now)"},
			&cli.Int64Flag{Name: "freshness-window-secs", Value: int64(fleet.DefaultWindow / time.Second),
				Usage: "oldest acceptable signature, in `SECONDS`"},
			command.JSONFlag(),
		}
		return &cli.Command{
			Name: name, Usage: what, Description: exits + "Example:\n   " + example,
			Flags: append(flags, extra...),
			Action: func(c *cli.Context) error {
				e, err := readEvidence(c, file)
				if err != nil {
					return command.Coded(2, command.Hinted(err, "%s", cmp.Or(command.HintOf(err), c.Command.HelpName+" --help")))
				}
				doc, line, err := action(c, e)
				if err != nil && command.ExitCode(err) == 1 && c.Bool("json") {
					if err := command.Document(c, refusalOf(err)); err != nil {
						return err
					}
				}
				if err != nil {
					return command.Hinted(fmt.Errorf("verify %s %s: %w", name, e.path, err), "%s",
						cmp.Or(command.HintOf(err), unbelieved(err)))
				}
				if c.Bool("json") {
					return command.Document(c, doc)
				}
				_, err = fmt.Fprintln(c.App.Writer, line)
				return err
			},
		}
	}
	tail := " --trust-file trust.json"
	return &cli.Command{
		Name: "verify", Usage: "check signed artifacts without a control plane",
		Flags: []cli.Flag{&cli.BoolFlag{Name: allRequired, Hidden: true}},
		Description: exits + "Under the name nixfleet-verify-artifact it has no defaults, like v1's tool: all flags are " +
			"required.\n\n" +
			"Example:\n   nixfleet verify artifact --artifact releases/fleet.resolved.json" + tail,
		Subcommands: []*cli.Command{
			artifact("artifact", "artifact", "a fleet snapshot",
				"nixfleet verify artifact --artifact releases/fleet.resolved.json"+tail, nil, verifyFleet),
			artifact("rollout-manifest", "manifest", "the manifest of a rollout",
				"nixfleet verify rollout-manifest --manifest releases/rollouts/$ID.json --rollout-id $ID"+tail,
				[]cli.Flag{&cli.StringFlag{Name: "rollout-id", Usage: "the `ID` it was advertised under"}}, verifyManifest),
			artifact("head", "head", "the head of a channel", "nixfleet verify head --head releases/heads/stable.json"+tail,
				[]cli.Flag{
					&cli.StringFlag{Name: "manifest", Usage: "manifest `FILE` that the head must commit to"},
					&cli.StringFlag{Name: "proof", Usage: "proof `FILE` (JSON with leaf, index, path) that must lead to the head"},
				}, verifyHead),
			artifact("revocations", "revocations", "the list of revoked certificates",
				"nixfleet verify revocations --revocations releases/revocations.json"+tail, nil, verifyRevocations),
			artifact("nonces", "nonces", "the list of bootstrap nonces",
				"nixfleet verify nonces --nonces releases/bootstrap-nonces.json"+tail, nil, verifyNonces),
			{
				Name: "probe", Usage: "a payload that a host signed with its ssh key",
				Description: "Prints the verdict as a JSON string.\n\nExample:\n" +
					"   nixfleet verify probe --payload payload.json --signature sig.b64 --pubkey web-01.pub",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "payload", Usage: "JSON `FILE`"},
					&cli.StringFlag{Name: "signature", Usage: "`FILE` with the base64 signature"},
					&cli.StringFlag{Name: "pubkey", Usage: "`FILE` with the host's OpenSSH key line"},
					&cli.BoolFlag{Name: "json", Usage: "changes nothing: the verdict is always JSON"},
				},
				Action: verifyProbe,
			},
		},
	}
}

// unbelieved is what to look at when an artifact is not believed.
func unbelieved(err error) string {
	var refused *pki.VerifyError
	if !errors.As(err, &refused) {
		return ""
	}
	switch refused.Reason {
	case pki.ReasonNoTrustRoots, pki.ReasonUnsupportedAlgorithm:
		return "--trust-file has no ciReleaseKey that could verify anything"
	case pki.ReasonBadSignature:
		return "is --signature the signature of this very file, and --trust-file that of its fleet?"
	case pki.ReasonRejectBefore:
		return "ciReleaseKey.rejectBefore of the trust file refuses what was signed earlier: nixfleet release --resign " +
			"signs anew"
	case pki.ReasonStale:
		return "nixfleet release --resign renews it; --now and --freshness-window-secs say when and by what it is judged"
	case pki.ReasonMismatch:
		return "a rollout's id is 64 lower-case hexadecimal digits, those of the file name; is this the manifest of that " +
			"rollout?"
	case pki.ReasonFutureDated:
		return "is this machine's clock right? --now says when it is judged"
	}
	return ""
}

// evidence is what the verify verbs were given.
type evidence struct {
	path      string
	body, sig []byte
	trust     *pki.Trust
	now       time.Time
	window    time.Duration
}

func readEvidence(c *cli.Context, file string) (*evidence, error) {
	e := &evidence{path: c.String(file), now: time.Now()}
	if err := command.Needs(c, file); err != nil {
		return nil, err
	}
	if c.Bool(allRequired) {
		for _, name := range []string{"signature", "trust-file", "now", "freshness-window-secs"} {
			if !c.IsSet(name) {
				return nil, command.Usage("under this name all flags are required; nixfleet verify has defaults", "--%s is missing",
					name)
			}
		}
	}
	seconds := c.Int64("freshness-window-secs")
	if seconds < 0 {
		return nil, command.Usage("", "--freshness-window-secs must not be negative")
	}
	e.window = time.Duration(min(seconds, int64(math.MaxInt64/time.Second))) * time.Second
	trustPath := c.String("trust-file")
	if trustPath == "" {
		if trustPath = installedTrust(); trustPath == "" {
			return nil, command.Usage("", "--trust-file is missing")
		}
	}
	var err error
	if text := c.String("now"); c.IsSet("now") {
		at, err := pki.ParseTimestamp(text)
		if err != nil {
			return nil, command.Usage("write it as 2026-03-01T12:00:00Z", "--now: %w", err)
		}
		e.now = at.Time
	}
	if e.trust, err = loadTrust(c, trustPath); err != nil {
		return nil, err
	}
	if e.body, err = command.ReadFile(e.path, pki.MaxDocument); err != nil {
		return nil, err
	}
	signature := c.String("signature")
	if signature == "" {
		signature = e.path + ".sig"
	}
	e.sig, err = command.ReadFile(signature, command.SmallFile)
	return e, err
}

// outcome is what --json prints for a verified artifact.
type outcome struct {
	Verified bool   `json:"verified"`
	Hash     string `json:"hash"`
	SignedAt string `json:"signedAt"`
	Document any    `json:"document"`
}

// refused is what --json prints for one that is not; reason is empty where it is
// none of those of contracts/artifacts.md §3.
type refused struct {
	Verified bool   `json:"verified"`
	Reason   string `json:"reason"`
	Error    string `json:"error"`
}

func refusalOf(err error) refused {
	r := refused{Error: err.Error()}
	var why *pki.VerifyError
	if errors.As(err, &why) {
		r.Reason = string(why.Reason)
	}
	return r
}

func outcomeOf(v fleet.Artifact, doc any) outcome {
	return outcome{Verified: true, Hash: v.Hash, SignedAt: pki.At(v.SignedAt).String(), Document: doc}
}

func verifyFleet(_ *cli.Context, e *evidence) (any, string, error) {
	f, v, err := fleet.Verify(&e.trust.CIReleaseKey, e.body, e.sig, e.now, e.window, fleet.ParseFleet)
	if err != nil {
		return nil, "", err
	}
	return outcomeOf(v, f), fmt.Sprintf("schemaVersion=%d hosts=%d", f.SchemaVersion, len(f.Hosts)), nil
}

func verifyManifest(c *cli.Context, e *evidence) (any, string, error) {
	id := c.String("rollout-id")
	if id == "" {
		return nil, "", command.Usage("", "--rollout-id is missing")
	}
	m, v, err := fleet.VerifyManifest(&e.trust.CIReleaseKey, id, e.body, e.sig, e.now, e.window)
	if err != nil {
		return nil, "", err
	}
	return outcomeOf(v, m), fmt.Sprintf("schemaVersion=%d channel=%s hostSet=%d fleetResolvedHash=%s rolloutId=%s",
		m.SchemaVersion, m.Channel, len(m.HostSet), m.FleetResolvedHash, v.Hash), nil
}

func verifyHead(c *cli.Context, e *evidence) (any, string, error) {
	h, v, err := fleet.VerifyHead(&e.trust.CIReleaseKey, e.body, e.sig, e.now, e.window)
	if err != nil {
		return nil, "", err
	}
	if path := c.String("manifest"); path != "" {
		if err := headCommitsTo(h, path); err != nil {
			return nil, "", err
		}
	}
	if path := c.String("proof"); path != "" {
		data, err := command.ReadFile(path, command.SmallFile)
		if err != nil {
			return nil, "", command.Coded(2, err)
		}
		var proof protocol.Proof
		if err := pki.Decode(data, &proof); err != nil {
			return nil, "", command.Coded(2, fmt.Errorf("proof %s: %w", path, err))
		}
		leaf, err := pki.Canonicalize(proof.Leaf)
		if err != nil {
			return nil, "", command.Coded(2, fmt.Errorf("proof %s: leaf: %w", path, err))
		}
		if err := pki.VerifyInclusion(h.HostSetRoot, int(h.HostCount), proof.Index, leaf, proof.Path); err != nil {
			return nil, "", fmt.Errorf("proof %s: %w", path, err)
		}
	}
	return outcomeOf(v, h), fmt.Sprintf("schemaVersion=%d channel=%s rolloutId=%s intent=%s hostCount=%d hostSetRoot=%s",
		h.SchemaVersion, h.Channel, h.RolloutID, h.Intent, h.HostCount, h.HostSetRoot), nil
}

func headCommitsTo(h *fleet.Head, path string) error {
	body, err := command.ReadFile(path, pki.MaxDocument)
	if err != nil {
		return command.Coded(2, err)
	}
	canonical, err := pki.Canonicalize(body)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", path, err)
	}
	m, err := fleet.ParseManifest(canonical)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", path, err)
	}
	if id := pki.HashHex(canonical); id != h.RolloutID {
		return fmt.Errorf("the head names rollout %s, manifest %s is %s", h.RolloutID, path, id)
	}
	leaves := make([][]byte, len(m.HostSet))
	for i, entry := range m.HostSet {
		leaves[i] = fleet.Leaf(entry)
	}
	if tree := pki.NewTree(leaves); tree.Root() != h.HostSetRoot || tree.Size() != int(h.HostCount) {
		return errors.New("the head's hostSetRoot is not that of the manifest's hostSet")
	}
	return nil
}

func verifyRevocations(_ *cli.Context, e *evidence) (any, string, error) {
	r, v, err := fleet.Verify(&e.trust.CIReleaseKey, e.body, e.sig, e.now, e.window, fleet.ParseRevocations)
	if err != nil {
		return nil, "", err
	}
	return outcomeOf(v, r), fmt.Sprintf("schemaVersion=%d revocations=%d", r.SchemaVersion, len(r.Revocations)), nil
}

func verifyNonces(_ *cli.Context, e *evidence) (any, string, error) {
	n, v, err := fleet.Verify(&e.trust.CIReleaseKey, e.body, e.sig, e.now, e.window, fleet.ParseNonces)
	if err != nil {
		return nil, "", err
	}
	return outcomeOf(v, n), fmt.Sprintf("schemaVersion=%d bootstrapNonces=%d", n.SchemaVersion,
		len(n.BootstrapNonces)), nil
}

func verifyProbe(c *cli.Context) error {
	var parts [3][]byte
	for i, name := range []string{"payload", "signature", "pubkey"} {
		if c.String(name) == "" {
			return command.Usage("nixfleet verify probe --help", "--%s is missing", name)
		}
		var err error
		if parts[i], err = command.ReadFile(c.String(name), pki.MaxDocument); err != nil {
			return command.Coded(2, err)
		}
	}
	signature := strings.TrimSpace(string(parts[1]))
	verdict := protocol.VerifyProbe(parts[0], signature, strings.TrimSpace(string(parts[2])))
	out, err := pki.Marshal(string(verdict))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.App.Writer, "%s\n", out); err != nil {
		return err
	}
	if verdict != "verified" {
		return fmt.Errorf("probe signature: %s", verdict)
	}
	return nil
}
