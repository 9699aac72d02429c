package operator

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

func releaseCommand() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "build, sign and publish a release of the fleet",
		Description: "Evaluates fleet.resolved, builds every host, pushes the closures, stamps, canonicalises and signs the\n" +
			"fleet, its manifests, heads and lists, verifies all of it as a host will, and only then writes the release\n" +
			"directory and, with --git-push, one commit on top of the branch that was read. --resign renews the\n" +
			"signatures of the release in place without building: run it by a timer, well inside the freshness window.\n\n" +
			"Exit 0: released, or nothing had changed; 1: configuration, evaluation or build; 2: a hook failed (or\n" +
			"usage); 3: what was signed does not verify.\n\n" +
			"A hook runs as `sh -c`. The push hook, once for each host, has NIXFLEET_HOST, NIXFLEET_PATH and\n" +
			"NIXFLEET_CLOSURE_HASH; one host follows the other unless --push-jobs says that the hook bears company. The\n" +
			"sign hook, once for each file, reads the canonical bytes from NIXFLEET_INPUT and writes the 64 raw bytes of\n" +
			"the signature to NIXFLEET_OUTPUT.\n\n" +
			"Before anything is signed, --copy-to and the caches that the built systems name in nix.conf are asked for\n" +
			"every path, and whether it has a signature that the systems accept; --no-verify-cache leaves that out.\n\n" +
			"Nothing is published that does not verify. The keys to verify with are those of --trust-file, else\n" +
			"--public-key, else trust.json beside the fleet's flake. With a sign hook and none of them, release refuses to\n" +
			"begin; nixfleet-release, the name that v1 scripts use, then takes the trust.json that the built systems bring,\n" +
			"and if they bring none it warns and publishes.\n\n" +
			"Example:\n   nixfleet release --sign-key release.key --push-cmd 'nix copy --to s3://cache $NIXFLEET_PATH' --git-push origin:main\n" +
			"   nixfleet release --resign --sign-cmd ./sign-with-tpm --trust-file trust.json --git-push origin:main",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "hosts", Value: "auto", Usage: "`HOSTS` to build: auto, auto:exclude=a,b or a,b"},
			&cli.StringFlag{Name: "build-flake", Value: ".", Usage: "`FLAKE` of the fleet"},
			&cli.StringFlag{Name: "fleet-resolved-attr", Value: ".#fleet.resolved", Usage: "`INSTALLABLE` of the fleet's declaration"},
			&cli.StringFlag{Name: "fleet-file", Usage: "`FILE` with the evaluated declaration, instead of evaluating"},
			&cli.StringFlag{Name: "closures", Usage: "JSON `FILE` that maps hosts to store paths, instead of building"},
			&cli.StringFlag{Name: "revocations-attr", Usage: "`ATTRIBUTE` (without .#) of the list of revocations"},
			&cli.StringFlag{Name: "revocations-file", Usage: "`FILE` with that list, instead of evaluating"},
			&cli.StringFlag{Name: "bootstrap-nonces-attr", Usage: "`ATTRIBUTE` (without .#) of the list of bootstrap nonces"},
			&cli.StringFlag{Name: "bootstrap-nonces-file", Usage: "`FILE` with that list, instead of evaluating"},
			&cli.StringFlag{Name: "nix-bin-dir", EnvVars: []string{"NIXFLEET_NIX_BIN_DIR"}, Usage: "`DIR` of the Nix programs (default: on PATH)"},
			&cli.StringFlag{Name: "nix-conf-dir", Usage: "`DIR` of nix.conf (default: Nix's own)"},
			&cli.StringFlag{Name: "store", Usage: "build in this `STORE`, a directory for instance, instead of the machine's own"},
			&cli.StringFlag{Name: "pin-source-url", Usage: "flake `URL` that pinned commits are built from"},
			&cli.StringFlag{Name: "push-cmd", EnvVars: []string{"NIXFLEET_PUSH_CMD"}, Usage: "`HOOK` that pushes one closure to the cache"},
			&cli.StringFlag{Name: "copy-to", Usage: "push all closures with nix copy to this `STORE`"},
			&cli.StringFlag{Name: "cache-key", Usage: "key `FILE` in Nix's form that --copy-to signs every path with"},
			&cli.BoolFlag{Name: "no-verify-cache", Usage: "do not ask the caches whether hosts can fetch every path of the release"},
			&cli.StringFlag{Name: "sign-cmd", EnvVars: []string{"NIXFLEET_SIGN_CMD"}, Usage: "`HOOK` that signs one file"},
			&cli.StringFlag{Name: "sign-key", EnvVars: []string{"NIXFLEET_SIGN_KEY"}, Usage: "release key `FILE`, instead of a hook"},
			&cli.StringFlag{Name: "identity", Usage: "age identity or ssh private key `FILE` that opens encrypted keys"},
			&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"}, Usage: "trust.json `FILE` of the fleet: nothing is published that its ciReleaseKey does not verify"},
			&cli.StringFlag{Name: "public-key", Usage: "base64 `KEY` that the sign hook's signatures must verify under, where there is no trust file"},
			&cli.BoolFlag{Name: "allow-unverified", Usage: "publish what a hook signed although nothing says with which key; nixfleet-release does"},
			&cli.StringFlag{Name: "signature-algorithm", EnvVars: []string{"NIXFLEET_SIGNATURE_ALGORITHM"}, Usage: "`LABEL` in the artifacts: ed25519 or ecdsa-p256 (default: the key's own)"},
			&cli.StringFlag{Name: "release-dir", Value: "releases", Usage: "write the release into `DIR`"},
			&cli.StringFlag{Name: "artifact-name", Value: fleet.FleetName, Usage: "`NAME` of the fleet's file"},
			&cli.BoolFlag{Name: "git-commit", Usage: "commit the release"},
			&cli.StringFlag{Name: "git-push", Usage: "commit and push to `REMOTE:BRANCH`, only on top of what was read from it"},
			&cli.StringFlag{Name: "commit-template", Value: "chore(ci): release {sha:0:8} [skip ci]", Usage: "commit `MESSAGE`; knows {sha}, {sha:0:8} and {ts}"},
			&cli.StringFlag{Name: "git-user-name", EnvVars: []string{"NIXFLEET_GIT_USER_NAME"}, Usage: "`NAME` of the committer"},
			&cli.StringFlag{Name: "git-user-email", EnvVars: []string{"NIXFLEET_GIT_USER_EMAIL"}, Usage: "`ADDRESS` of the committer"},
			&cli.StringFlag{Name: "smoke-verify", Value: "true", Usage: "load the signed release as a control plane would: `true|false` (signatures are checked always)"},
			&cli.BoolFlag{Name: "reuse-unchanged-signature", Usage: "publish nothing when not a single byte but the time would change"},
			&cli.BoolFlag{Name: "resign", Usage: "renew the signatures of the present release, without building"},
			&cli.BoolFlag{Name: "dry-run", Usage: "evaluate and build, then say what would change; push, sign and write nothing"},
			&cli.DurationFlag{Name: "confirm-window", Value: 6 * time.Minute, Usage: "`TIME` a host has to confirm"},
			&cli.DurationFlag{Name: "lease", Value: 5 * time.Minute, Usage: "`TIME` within which a host must begin what it was told"},
			&cli.IntFlag{Name: "push-jobs", Value: 1, Usage: "run the push hook for `N` hosts at the same time"},
			&cli.IntFlag{Name: "jobs", Value: 2, Usage: "build `N` hosts at the same time"},
			&cli.StringFlag{Name: "log-format", Value: "pretty", Usage: "`FORMAT` of progress: pretty or json"},
			command.JSONFlag(),
		},
		Action: release,
	}
}

// releaser is one run of release.
type releaser struct {
	c       *cli.Context
	out     io.Writer
	dir     string // the release directory, absolute
	name    string // of the fleet's file
	repo    *repository
	signer  *signer
	roots   string // links to what is built, until it is pushed; "" when nothing is
	now     time.Time
	warned  map[string]bool // of trust files, said once
	summary releaseSummary
}

// releaseSummary is what --json prints.
type releaseSummary struct {
	Released    bool                      `json:"released"`
	Unchanged   bool                      `json:"unchanged"`
	DryRun      bool                      `json:"dryRun"`
	Resigned    bool                      `json:"resigned"`
	SignedAt    *pki.Timestamp            `json:"signedAt"`
	CICommit    *string                   `json:"ciCommit"`
	GitCommit   *string                   `json:"gitCommit"`
	FleetHash   string                    `json:"fleetResolvedHash"`
	Channels    map[string]channelSummary `json:"channels"`
	Changed     []hostChange              `json:"changedHosts"`
	ExpiredPins []string                  `json:"expiredPins"`
	PrunedNonce int                       `json:"prunedNonces"`
}

type channelSummary struct {
	RolloutID  string `json:"rolloutId"`
	Intent     string `json:"intent"`
	OpenedAt   string `json:"openedAt"`
	Hosts      int    `json:"hosts"`
	NewRollout bool   `json:"newRollout"`
}

type hostChange struct {
	Host string  `json:"host"`
	From *string `json:"from"`
	To   *string `json:"to"`
}

func (r *releaser) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

func release(c *cli.Context) error {
	ctx := c.Context
	r, err := newReleaser(ctx, c)
	if err != nil {
		return err
	}
	var d *draft
	if c.Bool("resign") {
		d, err = r.present(ctx)
	} else {
		// An hour lies between the first build and the push.
		if r.roots, err = os.MkdirTemp("", "nixfleet-roots-"); err != nil {
			return err
		}
		defer os.RemoveAll(r.roots)
		d, err = r.declare(ctx)
	}
	if err != nil {
		return err
	}
	if err := r.publish(ctx, d); err != nil {
		return err
	}
	return r.report()
}

func newReleaser(ctx context.Context, c *cli.Context) (*releaser, error) {
	dir, err := filepath.Abs(c.String("release-dir"))
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", c.String("release-dir"), err)
	}
	r := &releaser{c: c, out: newLineWriter(c, ""), dir: dir, name: c.String("artifact-name"), now: time.Now(), warned: map[string]bool{}}
	switch {
	case c.String("log-format") != "json" && c.String("log-format") != "pretty":
		return nil, command.Usage("", "--log-format must be pretty or json")
	case c.String("smoke-verify") != "true" && c.String("smoke-verify") != "false":
		return nil, command.Usage("", "--smoke-verify must be true or false")
	case r.name == "" || filepath.Base(r.name) != r.name || strings.HasPrefix(r.name, "."):
		return nil, command.Usage("", "--artifact-name must be a plain file name")
	case r.name == fleet.RevocationsName || r.name == fleet.NoncesName || strings.HasSuffix(r.name, fleet.SignatureSuffix):
		return nil, command.Usage("", "--artifact-name %s is the name of another file of a release", r.name)
	case c.Duration("confirm-window") < time.Minute || c.Duration("confirm-window") > time.Hour:
		// contracts/additions.md §4: agents clamp it, and would then wait for another
		// time than the control plane.
		return nil, command.Usage("", "--confirm-window must be between 1 and 60 minutes, which agents keep to whatever they are told")
	case c.Duration("lease") < time.Second:
		return nil, command.Usage("", "--lease must be at least a second")
	case c.Int("jobs") < 1 || c.Int("push-jobs") < 1:
		return nil, command.Usage("", "--jobs and --push-jobs must be at least 1")
	case c.Bool("resign") && (c.String("fleet-file") != "" || c.String("closures") != ""):
		return nil, command.Usage("", "--resign renews what is published; it takes neither --fleet-file nor --closures")
	case c.Bool("resign") && c.Bool("reuse-unchanged-signature"):
		return nil, command.Usage("", "--resign and --reuse-unchanged-signature contradict each other")
	}
	if r.signer, err = newSigner(c); err != nil {
		return nil, err
	}
	if r.repo, err = openRepository(ctx, dir, c); err != nil {
		return nil, err
	}
	// Needed at the very end only: a key that cannot be opened is found, and a
	// passphrase asked for, while somebody is there.
	if path := c.String("cache-key"); path != "" && !c.Bool("resign") && !c.Bool("dry-run") {
		if _, err := readSecret(path, c.String("identity")); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// listMax is how many changed hosts are printed for a person.
const listMax = 40

// report prints what happened: a few lines for people, one object for programs.
func (r *releaser) report() error {
	s := &r.summary
	if r.c.Bool("json") {
		return command.Document(r.c, s)
	}
	w := r.c.App.Writer
	switch {
	case s.Unchanged:
		fmt.Fprintln(w, "nothing changed")
		return nil
	case s.DryRun:
		fmt.Fprintln(w, "dry run: nothing was pushed, signed or written")
	default:
		fmt.Fprintf(w, "released %s, signed %s\n", s.FleetHash, s.SignedAt)
	}
	rows := [][]string{{"CHANNEL", "HOSTS", "ROLLOUT", "OPENED"}}
	for _, name := range sortedKeys(s.Channels) {
		ch := s.Channels[name]
		opened := ch.OpenedAt
		if ch.NewRollout {
			opened += " (new)"
		}
		rows = append(rows, []string{name, fmt.Sprint(ch.Hosts), short(ch.RolloutID), opened})
	}
	if err := command.Table(w, rows); err != nil {
		return err
	}
	for i, h := range s.Changed {
		if i == listMax {
			fmt.Fprintf(w, "… and %d more (--json has all)\n", len(s.Changed)-listMax)
			break
		}
		fmt.Fprintf(w, "%s: %s -> %s\n", h.Host, command.OrDash(h.From), command.OrDash(h.To))
	}
	for _, pin := range s.ExpiredPins {
		fmt.Fprintf(w, "%s: its pin has expired\n", pin)
	}
	if s.PrunedNonce > 0 {
		fmt.Fprintf(w, "%d expired bootstrap nonces left out\n", s.PrunedNonce)
	}
	if s.GitCommit != nil {
		fmt.Fprintf(w, "commit %s\n", *s.GitCommit)
	}
	return nil
}
