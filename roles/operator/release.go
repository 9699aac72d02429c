package operator

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/operator/release"
	"nixfleet/roles/protocol/client"
)

func releaseCommand() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "build, sign and publish a release of the fleet",
		Description: "Evaluates fleet.resolved, builds every host, pushes the closures, stamps, canonicalises and signs " +
			"the\n" +
			"fleet, its manifests, heads and lists, verifies all of it as a host will, and only then writes the release\n" +
			"directory and, with --git-push, one commit on top of the branch that was read. --resign renews the\n" +
			"signatures of the release in place without building: run it by a timer, well inside the freshness window.\n\n" +
			"Exit 0: released, or nothing had changed; 1: configuration, evaluation or build; 2: a hook failed (or\n" +
			"usage); 3: what was signed does not verify.\n\n" +
			"A hook runs as `sh -c`. The push hook, once for each host, has NIXFLEET_HOST, NIXFLEET_PATH and\n" +
			"NIXFLEET_CLOSURE_HASH; hosts are pushed one at a time unless --push-jobs allows more. The\n" +
			"sign hook, once for each file, reads the canonical bytes from NIXFLEET_INPUT and writes the 64 raw bytes of\n" +
			"the signature to NIXFLEET_OUTPUT.\n\n" +
			"Before it signs, release asks --copy-to and the caches that the built systems name in nix.conf whether they\n" +
			"have every path, with a signature that the systems accept; --no-verify-cache skips this.\n\n" +
			"Nothing is published that does not verify. The keys to verify with are those of --trust-file, else\n" +
			"--public-key, else trust.json beside the fleet's flake. With a sign hook and none of them, release refuses to\n" +
			"begin; nixfleet-release, the name that v1 scripts use, then takes the trust.json that the built systems bring,\n" +
			"and if they bring none it warns and publishes.\n\n" +
			"Example:\n   nixfleet release --sign-key release.key --push-cmd 'nix copy --to s3://cache $NIXFLEET_PATH' " +
			"--git-push origin:main\n" +
			"   nixfleet release --sign-key release.key --git-push origin:main --wait --wait-timeout 2h\n" +
			"   nixfleet release --resign --sign-cmd ./sign-with-tpm --trust-file trust.json --git-push origin:main",
		Flags:       slices.Concat(sourceFlags(), pushFlags(), signFlags(), publishFlags(), waitFlags()),
		Subcommands: releaseViews(),
		Action:      runRelease,
	}
}

// sourceFlags are what a release is made of.
func sourceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "hosts", Value: "auto", Usage: "`HOSTS` to build: auto, auto:exclude=a,b or a,b"},
		&cli.StringFlag{Name: "build-flake", Value: ".", Usage: "`FLAKE` of the fleet"},
		&cli.StringFlag{Name: "fleet-resolved-attr", Value: ".#fleet.resolved",
			Usage: "`INSTALLABLE` of the fleet's declaration"},
		&cli.StringFlag{Name: "fleet-file", Usage: "`FILE` with the evaluated declaration, instead of evaluating"},
		&cli.StringFlag{Name: "closures", Usage: "JSON `FILE` that maps hosts to store paths, instead of building"},
		&cli.StringFlag{Name: "revocations-attr", Usage: "`ATTRIBUTE` (without .#) of the list of revocations"},
		&cli.StringFlag{Name: "revocations-file", Usage: "`FILE` with that list, instead of evaluating"},
		&cli.StringFlag{Name: "bootstrap-nonces-attr", Usage: "`ATTRIBUTE` (without .#) of the list of bootstrap nonces"},
		&cli.StringFlag{Name: "bootstrap-nonces-file", Usage: "`FILE` with that list, instead of evaluating"},
		&cli.StringFlag{Name: "nix-bin-dir", EnvVars: []string{"NIXFLEET_NIX_BIN_DIR"},
			Usage: "`DIR` of the Nix programs (default: on PATH)"},
		&cli.StringFlag{Name: "nix-conf-dir", Usage: "`DIR` of nix.conf (default: Nix's own)"},
		&cli.StringFlag{Name: "store",
			Usage: "build in this `STORE`, a directory for instance, instead of the machine's own"},
		&cli.StringFlag{Name: "pin-source-url", Usage: "flake `URL` that pinned commits are built from"},
	}
}

// pushFlags are how closures reach a cache.
func pushFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "push-cmd", EnvVars: []string{"NIXFLEET_PUSH_CMD"},
			Usage: "`HOOK` that pushes one closure to the cache"},
		&cli.StringFlag{Name: "copy-to", Usage: "push all closures with nix copy to this `STORE`"},
		&cli.StringFlag{Name: "cache-key", Usage: "key `FILE` in Nix's form that --copy-to signs every path with"},
		&cli.BoolFlag{Name: "no-verify-cache",
			Usage: "do not ask the caches whether hosts can fetch every path of the release"},
	}
}

// signFlags are who signs, and what is verified with.
func signFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "sign-cmd", EnvVars: []string{"NIXFLEET_SIGN_CMD"}, Usage: "`HOOK` that signs one file"},
		&cli.StringFlag{Name: "sign-key", EnvVars: []string{"NIXFLEET_SIGN_KEY"},
			Usage: "release key `FILE`, instead of a hook"},
		&cli.StringFlag{Name: "identity", Usage: "age identity or ssh private key `FILE` that opens encrypted keys"},
		&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"},
			Usage: "trust.json `FILE` of the fleet: nothing is published that its ciReleaseKey does not verify"},
		&cli.StringFlag{Name: "public-key", Usage: "base64 `KEY` that the sign hook's signatures must verify under, " +
			"where there is no trust file"},
		&cli.BoolFlag{Name: "allow-unverified",
			Usage: "publish what a hook signed although no key is given to verify it; nixfleet-release does so by itself"},
		&cli.StringFlag{Name: "signature-algorithm", EnvVars: []string{"NIXFLEET_SIGNATURE_ALGORITHM"},
			Usage: "`LABEL` in the artifacts: ed25519 or ecdsa-p256 (default: the key's own)"},
	}
}

// publishFlags are where a release goes, and what it grants.
func publishFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "release-dir", Value: "releases", Usage: "write the release into `DIR`"},
		&cli.StringFlag{Name: "in-force", Usage: "compare with the release in `DIR` (default: that of --release-dir or, " +
			"without git, ./releases beside it)"},
		&cli.StringFlag{Name: "artifact-name", Value: fleet.FleetName, Usage: "`NAME` of the fleet's file"},
		&cli.BoolFlag{Name: "git-commit", Usage: "commit the release"},
		&cli.StringFlag{Name: "git-push", Usage: "commit and push to `REMOTE:BRANCH`, only on top of what was read from it"},
		&cli.StringFlag{Name: "commit-template", Value: "chore(ci): release {sha:0:8} [skip ci]",
			Usage: "commit `MESSAGE`; knows {sha}, {sha:0:8} and {ts}"},
		&cli.StringFlag{Name: "git-user-name", EnvVars: []string{"NIXFLEET_GIT_USER_NAME"},
			Usage: "`NAME` of the committer"},
		&cli.StringFlag{Name: "git-user-email", EnvVars: []string{"NIXFLEET_GIT_USER_EMAIL"},
			Usage: "`ADDRESS` of the committer"},
		&cli.StringFlag{Name: "smoke-verify", Value: "true",
			Usage: "load the signed release as a control plane would: `true|false` (signatures are always checked)"},
		&cli.BoolFlag{Name: "reuse-unchanged-signature", Usage: "publish nothing when only the signing time would change"},
		&cli.BoolFlag{Name: "resign", Usage: "renew the signatures of the current release, without building"},
		&cli.BoolFlag{Name: "dry-run",
			Usage: "evaluate and build, then say what would change; push, sign and write nothing"},
		&cli.DurationFlag{Name: "confirm-window", Value: 6 * time.Minute, Usage: "`TIME` a host has to confirm"},
		&cli.DurationFlag{Name: "lease", Value: 5 * time.Minute,
			Usage: "`TIME` within which a host must begin an activation after it was told"},
		&cli.IntFlag{Name: "push-jobs", Value: 1, Usage: "run the push hook for `N` hosts at the same time"},
		&cli.IntFlag{Name: "jobs", Value: 2, Usage: "build `N` hosts at the same time"},
		&cli.StringFlag{Name: "log-format", Value: "pretty", Usage: "`FORMAT` of progress: pretty or json"},
		command.JSONFlag(),
	}
}

func runRelease(c *cli.Context) error {
	cfg, err := releaseConfig(c)
	if err != nil {
		return err
	}
	var plane *client.Client
	if c.Bool("wait") {
		if cfg.DryRun {
			return command.Usage("", "--dry-run publishes nothing that --wait could wait for")
		}
		// Before anything is built: who is to be asked must be known.
		if plane, err = connect(c); err != nil {
			return err
		}
	}
	summary, err := release.Run(c.Context, cfg)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = command.Document(c, summary)
	} else {
		err = printRelease(c, summary)
	}
	if err != nil || plane == nil {
		return err
	}
	var ids []string
	for _, name := range sortedKeys(summary.Channels) {
		ids = append(ids, summary.Channels[name].RolloutID)
	}
	return waitForRelease(c, plane, ids)
}

// releaseConfig reads the flags of release, once and for all.
func releaseConfig(c *cli.Context) (release.Config, error) {
	if err := checkRelease(c); err != nil {
		return release.Config{}, err
	}
	dir, err := filepath.Abs(c.String("release-dir"))
	if err != nil {
		return release.Config{}, fmt.Errorf("resolve %s: %w", c.String("release-dir"), err)
	}
	inForce := c.String("in-force")
	if inForce != "" {
		if inForce, err = filepath.Abs(inForce); err != nil {
			return release.Config{}, fmt.Errorf("resolve %s: %w", c.String("in-force"), err)
		}
	}
	git, err := releaseGit(c)
	if err != nil {
		return release.Config{}, err
	}
	flake, installable := c.String("build-flake"), c.String("fleet-resolved-attr")
	if ref, attr, ok := strings.Cut(installable, "#"); ok && ref == "." && !c.IsSet("fleet-resolved-attr") {
		installable = flake + "#" + attr
	}
	list := func(name string) release.List {
		return release.List{Attribute: c.String(name + "-attr"), File: c.String(name + "-file")}
	}
	return release.Config{
		Dir: dir, FleetName: c.String("artifact-name"),
		Source: release.Source{
			Flake: flake, Installable: installable, FleetFile: c.String("fleet-file"), Closures: c.String("closures"),
			Hosts: c.String("hosts"), PinURL: c.String("pin-source-url"),
			InForce:     inForce,
			Revocations: list("revocations"), Nonces: list("bootstrap-nonces"),
		},
		Nix: release.Nix{
			BinDir: c.String("nix-bin-dir"), ConfDir: c.String("nix-conf-dir"), Store: c.String("store"), Jobs: c.Int("jobs"),
		},
		Push: release.Push{
			Hook: c.String("push-cmd"), Jobs: c.Int("push-jobs"), CopyTo: c.String("copy-to"), CacheKey: c.String("cache-key"),
			Unverified: c.Bool("no-verify-cache"),
		},
		Signing: release.Signing{
			Hook: c.String("sign-cmd"), KeyFile: c.String("sign-key"), TrustFile: c.String("trust-file"),
			PublicKey: c.String("public-key"), Algorithm: c.String("signature-algorithm"),
			AllowUnverified: c.Bool("allow-unverified"),
		},
		Git: git,
		Windows: release.Windows{
			Confirm: c.Duration("confirm-window"), SetConfirm: c.IsSet("confirm-window"),
			Lease: c.Duration("lease"), SetLease: c.IsSet("lease"),
		},
		Keys:   keyFiles{newKeyring(c.String("identity"))},
		Resign: c.Bool("resign"), DryRun: c.Bool("dry-run"), ReuseUnchanged: c.Bool("reuse-unchanged-signature"),
		NoLoad:   c.String("smoke-verify") == "false",
		Progress: c.App.ErrWriter, JSONProgress: c.String("log-format") == "json",
	}, nil
}

// checkRelease refuses flags that contradict each other, and values that hosts would not keep to.
func checkRelease(c *cli.Context) error {
	name := c.String("artifact-name")
	confirm := c.Duration("confirm-window")
	switch {
	case c.String("log-format") != "json" && c.String("log-format") != "pretty":
		return command.Usage("", "--log-format must be pretty or json")
	case c.String("smoke-verify") != "true" && c.String("smoke-verify") != "false":
		return command.Usage("", "--smoke-verify must be true or false")
	case name == "" || filepath.Base(name) != name || strings.HasPrefix(name, "."):
		return command.Usage("", "--artifact-name must be a plain file name")
	case name == fleet.RevocationsName || name == fleet.NoncesName || strings.HasSuffix(name, fleet.SignatureSuffix):
		return command.Usage("", "--artifact-name %s is the name of another file of a release", name)
	case confirm < time.Minute || confirm > time.Hour:
		// contracts/additions.md §4: agents clamp it, and would then wait for another time than the control plane.
		return command.Usage("", "--confirm-window must be between 1 and 60 minutes, which agents keep to whatever they "+
			"are told")
	case c.Duration("lease") < time.Second:
		return command.Usage("", "--lease must be at least a second")
	case c.Int("jobs") < 1 || c.Int("push-jobs") < 1:
		return command.Usage("", "--jobs and --push-jobs must be at least 1")
	case c.Bool("resign") && (c.String("fleet-file") != "" || c.String("closures") != ""):
		return command.Usage("", "--resign renews what is published; it takes neither --fleet-file nor --closures")
	case c.String("in-force") != "" && (c.Bool("resign") || c.Bool("git-commit") || c.String("git-push") != ""):
		return command.Usage("", "--in-force is for a release that is written beside the one in force; --resign and git "+
			"go by the one that they replace")
	case c.Bool("resign") && c.Bool("reuse-unchanged-signature"):
		return command.Usage("", "--resign and --reuse-unchanged-signature contradict each other")
	}
	return nil
}

// releaseGit reads how a release is committed.
func releaseGit(c *cli.Context) (release.Git, error) {
	git := release.Git{
		Commit: c.Bool("git-commit"), Template: c.String("commit-template"),
		UserName: c.String("git-user-name"), Email: c.String("git-user-email"),
	}
	target := c.String("git-push")
	if target == "" {
		return git, nil
	}
	i := strings.LastIndex(target, ":")
	if i < 1 || i == len(target)-1 {
		return git, command.Usage("--git-push origin:main", "--git-push must be REMOTE:BRANCH")
	}
	git.Remote, git.Branch = target[:i], strings.TrimPrefix(target[i+1:], "refs/heads/")
	if strings.HasPrefix(git.Remote, "-") || strings.HasPrefix(git.Branch, "-") {
		return git, command.Usage("", "--git-push must be REMOTE:BRANCH")
	}
	return git, nil
}

// changesShown is how many changed hosts are printed for a person.
const changesShown = 40

// printRelease says what happened, in a few lines for people.
func printRelease(c *cli.Context, s *release.Summary) error {
	w := c.App.Writer
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
		rows = append(rows, []string{name, fmt.Sprint(ch.Hosts), command.Short(ch.RolloutID), opened})
	}
	if err := command.Table(w, rows); err != nil {
		return err
	}
	for i, h := range s.Changed {
		if i == changesShown {
			fmt.Fprintf(w, "… and %d more (--json has all)\n", len(s.Changed)-changesShown)
			break
		}
		fmt.Fprintf(w, "%s: %s -> %s\n", h.Host, command.OrDash(h.From), command.OrDash(h.To))
	}
	for _, pin := range s.ExpiredPins {
		fmt.Fprintf(w, "%s: its pin has expired\n", pin)
	}
	if s.PrunedNonce > 0 {
		fmt.Fprintf(w, "%s left out, of %s: take them out of bootstrapNonces, or prepare the hosts anew\n",
			command.Plural(s.PrunedNonce, "expired bootstrap nonce"), strings.Join(s.PrunedHosts, ", "))
	}
	if s.GitCommit != nil {
		fmt.Fprintf(w, "commit %s\n", *s.GitCommit)
	}
	return nil
}
