package operator

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// exitBlocked is the exit code of import-v1 when something must be changed before the fleet can move.
const exitBlocked = 3

func importV1Command() *cli.Command {
	return &cli.Command{
		Name: "import-v1", Usage: "look at the repository of a v1 fleet and say what will differ", ArgsUsage: "DIR",
		Description: "Reads the release in DIR, its trust.json, its Nix files and its CI jobs, and changes nothing.\n" +
			"Each line names a place, what v1 does with it, what happens here, and what to do about it.\n" +
			"docs/migrating-from-v1.md goes through the move.\n\n" +
			"Exit 0: the fleet can move; 3: lines marked ! come first.\n\n" +
			"Example:\n   nixfleet import-v1 ../fleet --trust-file trust.json",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "release-dir", Value: "releases", Usage: "`DIR` of the release, below the repository"},
			&cli.StringFlag{Name: "artifact-name", Value: fleet.FleetName, Usage: "`NAME` of the fleet's file"},
			&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"},
				Usage: "trust.json `FILE` of the fleet (default: trust.json in the repository, if there is one)"},
			command.JSONFlag(),
		},
		Action: importV1,
	}
}

// difference is one thing that a v1 fleet will notice.
type difference struct {
	Where  string `json:"where"`
	V1     string `json:"v1"`
	Here   string `json:"here"`
	Next   string `json:"next"` // "" when nothing is to be done
	Blocks bool   `json:"blocks"`
}

func importV1(c *cli.Context) error {
	dir := c.Args().First()
	if c.NArg() != 1 || dir == "" {
		return command.Usage("nixfleet import-v1 DIR", "import-v1 takes the directory of the fleet's repository")
	}
	trustFile := c.String("trust-file")
	if trustFile == "" {
		if beside := filepath.Join(dir, "trust.json"); exists(beside) {
			trustFile = beside
		}
	}
	v := v1Fleet{dir: dir, release: filepath.Join(dir, c.String("release-dir")), name: c.String("artifact-name"),
		now: time.Now()}
	if err := v.readTrust(trustFile); err != nil {
		return err
	}
	if err := v.readRelease(); err != nil {
		return err
	}
	if err := v.readSources(); err != nil {
		return err
	}
	blocked := slices.ContainsFunc(v.found, func(d difference) bool { return d.Blocks })
	if c.Bool("json") {
		if err := command.Document(c, map[string]any{"blocked": blocked, "differences": v.found}); err != nil {
			return err
		}
	} else if err := printDifferences(c, v.found); err != nil {
		return err
	}
	if blocked {
		return command.Coded(exitBlocked, command.Hinted(fmt.Errorf("import-v1 %s: the lines marked ! come first", dir),
			"see docs/migrating-from-v1.md"))
	}
	return nil
}

func printDifferences(c *cli.Context, found []difference) error {
	for _, d := range found {
		mark := "-"
		if d.Blocks {
			mark = "!"
		}
		text := fmt.Sprintf("%s %s\n    v1:   %s\n    here: %s\n", mark, d.Where, d.V1, d.Here)
		if d.Next != "" {
			text += "    next: " + d.Next + "\n"
		}
		if _, err := fmt.Fprint(c.App.Writer, text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s\n", command.Plural(len(found), "difference"))
	return err
}

// v1Fleet is the repository that import-v1 looks at, and what it found there.
type v1Fleet struct {
	dir, release, name string
	now                time.Time
	trust              *pki.Trust // nil when the repository has no trust file
	found              []difference
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (v *v1Fleet) add(d difference) { v.found = append(v.found, d) }

// readTrust looks at the trust file.
func (v *v1Fleet) readTrust(path string) error {
	if path == "" {
		v.add(difference{Where: "trust.json", V1: "is made from nixfleet.trust by the modules", Here: "the same",
			Next: "give --trust-file with a host's /etc/nixfleet/agent/trust.json, so that the release can be verified"})
		return nil
	}
	trust, warnings, err := readTrust(path)
	if err != nil {
		return err
	}
	v.trust = trust
	for _, w := range warnings {
		v.add(difference{Where: path, V1: "ignores it", Here: w, Next: "correct the name of the member"})
	}
	if org := trust.OrgRootKey; org != nil && org.RejectBefore != nil {
		v.add(difference{Where: path + " orgRootKey.rejectBefore", V1: "is ignored for tokens",
			Here: "tokens issued before " + org.RejectBefore.String() + " are refused",
			Next: "mint anew the tokens that are under way"})
	}
	if len(trust.IssuanceCAPEMs) == 0 {
		v.add(difference{Where: path + " issuanceCaPems", V1: "is not read",
			Here: "agents take a renewed certificate of these issuing CAs only; without one, of the present issuer only",
			Next: "name the issuing CA in nixfleet.trust.issuanceCAPems before it is replaced (docs/rotation.md)"})
	}
	if len(trust.CacheKeys) > 0 {
		v.add(difference{Where: path + " cacheKeys", V1: "are copied and applied to nothing",
			Here: "hosts trust them for substitution: " + keyNames(trust.CacheKeys),
			Next: "take out keys that hosts are not to trust"})
	}
	return nil
}

// keyNames are the names of Nix keys, without the keys.
func keyNames(keys []string) string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i], _, _ = strings.Cut(key, ":")
	}
	return strings.Join(names, ", ")
}

// readRelease looks at the release in the repository.
func (v *v1Fleet) readRelease() error {
	path := filepath.Join(v.release, v.name)
	body, err := command.ReadFile(path, pki.MaxDocument)
	if err != nil {
		return command.Hinted(fmt.Errorf("read the fleet's release: %w", err),
			"--release-dir and --artifact-name say where it lies below the repository")
	}
	v.verified(path, body)
	declaration, err := fleet.ParseDeclaration(body)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	v.declared(path, declaration)
	f, err := declaration.Fleet()
	if err != nil {
		v.add(difference{Where: path, V1: "accepts it", Here: "does not read it: " + err.Error(),
			Next: "correct the declaration", Blocks: true})
		return nil
	}
	v.fleet(path, f)
	if !exists(filepath.Join(v.release, fleet.HeadsDir)) {
		v.add(difference{Where: filepath.Join(v.release, fleet.HeadsDir), V1: "has no heads",
			Here: "agents of nixfleet act on a signed head of their channel; v1's ignore heads",
			Next: "release once with nixfleet release before the first host gets the new agent"})
	}
	return nil
}

// verified looks at the signature of the release.
func (v *v1Fleet) verified(path string, body []byte) {
	if v.trust == nil {
		return
	}
	sig, err := command.ReadFile(path+fleet.SignatureSuffix, command.SmallFile)
	if err == nil {
		_, _, err = fleet.Verify(&v.trust.CIReleaseKey, body, sig, v.now, fleet.AnyAge, fleet.ParseFleet)
	}
	if err != nil {
		v.add(difference{Where: path, V1: "serves what its control plane verified", Here: "does not verify: " + err.Error(),
			Next: "give the trust file of this fleet, or release again", Blocks: true})
	}
}

// declared looks at what is changed before it is signed.
func (v *v1Fleet) declared(path string, d *fleet.Declaration) {
	expired, err := d.DropExpired(v.now)
	if err != nil {
		v.add(difference{Where: path + " pins", V1: "builds from any revision", Here: err.Error(),
			Next: "write the whole commit: git rev-parse REV", Blocks: true})
	}
	for _, host := range expired {
		v.add(difference{Where: path + " host " + host, V1: "drops an expired pin at the release", Here: "the same"})
	}
	for _, s := range d.KeepOwnHosts() {
		v.add(difference{Where: fmt.Sprintf("%s wave %d of %s", path, s.Wave, s.Channel),
			V1:   fmt.Sprintf("waits for %s, which is on channel %s and never soaks here", s.Host, s.Own),
			Here: "a wave has hosts of its own channel only", Next: "select by channel to have none left out"})
	}
	lowered, err := d.LowerPolicies()
	if err != nil {
		v.add(difference{Where: path, V1: "drops `and` and `not` from the signed document, which empties the selector",
			Here: err.Error(), Next: "evaluate the declaration with mkFleet of nixfleet", Blocks: true})
	}
	for _, l := range lowered {
		v.add(difference{Where: fmt.Sprintf("%s policy %s wave %d", path, l.Policy, l.Wave),
			V1: "drops `and` and `not` from the signed document", Here: "signs a list of the hosts that are meant"})
	}
}

// fleet looks at what the document says.
func (v *v1Fleet) fleet(path string, f *fleet.Fleet) {
	for _, p := range fleet.Check(f) {
		v.add(difference{Where: path + " " + p.Subject, V1: "releases it", Here: p.Text, Next: p.Mend, Blocks: p.Fatal})
	}
	for i, b := range f.DisruptionBudgets {
		if b.MaxInFlightPct != nil {
			v.add(difference{Where: fmt.Sprintf("%s budget %d", path, i), V1: "never applies maxInFlightPct",
				Here: fmt.Sprintf("at most %d %% of the hosts are in flight, at least one", *b.MaxInFlightPct)})
		}
	}
	for _, name := range sortedKeys(f.Channels) {
		v.channel(path+" channel "+name, f, name)
	}
	v.lists()
}

// channel looks at what a channel does when something fails.
func (v *v1Fleet) channel(where string, f *fleet.Fleet, name string) {
	ch := f.Channels[name]
	v.add(difference{Where: where, V1: "the control plane takes a release of up to its own flag's age, 30 days",
		Here: fmt.Sprintf("agents and control plane refuse one older than freshnessWindow, %d minutes", ch.FreshnessWindow),
		Next: fmt.Sprintf("sign again every %d minutes: nixfleet release --resign", ch.SigningIntervalMinutes)})
	if ch.Compliance.Mode == fleet.ModeEnforce && len(ch.Compliance.Frameworks) == 0 {
		v.add(difference{Where: where + " compliance", V1: "enforces without frameworks, which is the default",
			Here: "mkFleet writes disabled where no framework is listed; a document that says enforce is taken at its word",
			Next: `write compliance.mode = "enforce" where hosts are to prove something without a framework`})
	}
	if ch.Compliance.Mode == fleet.ModeEnforce {
		v.add(difference{Where: where + " compliance", V1: "returns a host whose evidence fails",
			Here: "the same; mkFleet also refuses a host without compliance-evidence-collector.service",
			Next: "see that each host of the channel has a collector"})
	}
}

// lists looks at the lists beside the fleet.
func (v *v1Fleet) lists() {
	names := map[string]string{fleet.RevocationsName: "revocations", fleet.NoncesName: "bootstrap-nonces"}
	for _, name := range sortedKeys(names) {
		path := filepath.Join(v.release, name)
		if !exists(path) {
			continue
		}
		v.add(difference{Where: path, V1: "belongs to no release; an older one can be served again",
			Here: "the fleet's document names its hash, so both come from one release",
			Next: "keep --" + names[name] + "-attr in the release job; a list that vanishes is refused"})
	}
}
