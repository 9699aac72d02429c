package operator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// rotation is one kind of key that trust.json holds, and how it is replaced.
type rotation struct {
	kind, usage string
	flags       []cli.Flag
	begin       func(*minted) error
	check       func(*cli.Context, *pki.Trust) error // refuses to begin, before a key is made
	finish      func(*cli.Context, *pki.Trust) (string, error)
	// begun and finished are what the operator does next.
	begun, finished []string
}

// guides are the rotations of which trust.json holds nothing, or that need more files than it: what to run, in order.
var guides = []struct {
	kind, usage string
	steps       []string
}{
	{"issuing-ca", "the steps to replace the issuing CA of agents' certificates", []string{
		"nixfleet keygen issuing-ca --dir next --suffix SUFFIX --root-cert fleet-root.cert.pem " +
			"--root-key fleet-root.key.pem --trust-file trust.json",
		"commit the block that it prints, and release; put next/client-ca.pem, which has both, on the control plane",
		"give the control plane next/issuing-ca.cert.pem and its key; agents renew at half of their certificates' lives",
		"when nixfleet certs shows none of the old one: take it out of client-ca.pem and issuanceCAPems, and release",
	}},
	{"fleet-root", "the steps to replace the fleet root", []string{
		"nixfleet keygen fleet-ca --dir next --suffix SUFFIX",
		"put both roots into the agents' CA bundle, and both roots and both issuing CAs into client-ca.pem and " +
			"issuanceCAPems",
		"release, and wait until nixfleet status shows every host on that release",
		"nixfleet keygen server and nixfleet mint-operator-cert make the certificates under the new root; give the " +
			"control plane the new issuing CA",
		"when every agent has renewed: take the old root and the old issuing CA out everywhere, and release",
	}},
	{"host", "the steps to replace a host's key", []string{
		"put the new public key into the host's pubkey, and mint a token for it: nixfleet mint-token",
		"list its nonce, and release; from then on the old key opens nothing",
		"put the new key and the token on the host: it enrols again",
	}},
	{"operator", "the steps to replace an operator's certificate", []string{
		"if it was lost: nixfleet revoke NAME --reason TEXT, and wait six minutes",
		"nixfleet mint-operator-cert makes the next one",
	}},
	{"server", "the steps to replace the control plane's certificate", []string{
		"nixfleet keygen server --dir next --server NAME --root-cert fleet-root.cert.pem --root-key fleet-root.key.pem",
		"put both files in the place of the present ones; the control plane reads them again by itself",
	}},
}

func rotations() []rotation {
	return []rotation{
		{kind: "release", usage: "replace the key that signs releases",
			flags: append([]cli.Flag{outFlag("release-next.key"), algorithmFlag(), leakedFlag()},
				recipientFlags("encrypt the key")...),
			begin: func(m *minted) error {
				to, err := recipients(m.c)
				if err != nil {
					return err
				}
				if m.c.Bool("leaked") {
					m.trust.CIReleaseKey.RejectBefore = leakKnownAt(m.now)
				}
				return m.release(m.c.String("out"), m.c.String("algorithm"), to...)
			},
			check:  func(_ *cli.Context, t *pki.Trust) error { return steady("release", &t.CIReleaseKey) },
			finish: func(_ *cli.Context, t *pki.Trust) (string, error) { return retire("release", &t.CIReleaseKey) },
			begun: []string{
				"put the trust file on the control plane, commit the block, and release with the old key",
				"when nixfleet status shows every host on that release: give CI the new key, and release with it",
				"nixfleet trust rotate release --finish",
			},
			finished: []string{"put the trust file on the control plane, commit the block, and release with the new key"},
		},
		{kind: "org-root", usage: "replace the key that signs bootstrap tokens",
			flags: append([]cli.Flag{outFlag("org-root-next.key"), leakedFlag()}, recipientFlags("encrypt the key")...),
			begin: func(m *minted) error {
				if err := m.orgRoot(m.c.String("out")); err != nil {
					return err
				}
				if m.c.Bool("leaked") {
					m.trust.OrgRootKey.RejectBefore = leakKnownAt(m.now)
				}
				return nil
			},
			check:  func(_ *cli.Context, t *pki.Trust) error { return steady("org-root", t.OrgRootKey) },
			finish: func(_ *cli.Context, t *pki.Trust) (string, error) { return retire("org-root", t.OrgRootKey) },
			begun: []string{
				"put the trust file on the control plane, commit the block, and release; tokens of both keys admit hosts",
				"mint tokens with the new key",
				"nixfleet trust rotate org-root --finish",
			},
			finished: []string{"put the trust file on the control plane, commit the block, and release; " +
				"tokens of the old key admit nobody then"},
		},
		{kind: "cache", usage: "replace a binary cache's signing key",
			flags: []cli.Flag{outFlag("cache-next.key"), cacheNameFlag(),
				&cli.StringFlag{Name: "old", Usage: "with --finish: `NAME` of the key to take out"}},
			begin:  func(m *minted) error { return m.cache(m.c.String("out"), m.c.String("name")) },
			check:  unusedCacheName,
			finish: retireCacheKey,
			begun: []string{
				"commit the block, and release with the old key: hosts fetch a release with the keys that they trust " +
					"before it",
				"when nixfleet status shows every host on that release: release with the new key",
				"nixfleet trust rotate cache --finish --old NAME",
			},
			finished: []string{"commit the block, and release with the new key"},
		},
	}
}

func leakedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "leaked", Usage: "the old key is in other hands: set rejectBefore to now"}
}

func trustCommand() *cli.Command {
	rotate := &cli.Command{
		Name: "rotate", Usage: "replace a key, and say what to do next",
		Description: "Makes the new key and the trust file that names both; --finish makes the one without the old key.\n" +
			"Of keys that trust.json does not hold it prints the steps. --dry-run writes nothing.\n\n" +
			"Example:\n   nixfleet trust rotate release --trust-file trust.json --dry-run",
	}
	for _, r := range rotations() {
		rotate.Subcommands = append(rotate.Subcommands, &cli.Command{
			Name: r.kind, Usage: r.usage,
			Description: "Run it twice: to begin, and with --finish when nothing is signed with the old key any more.\n\n" +
				"Example:\n   nixfleet trust rotate " + r.kind + " --trust-file trust.json --dry-run",
			Flags: append([]cli.Flag{
				&cli.StringFlag{Name: "trust-file", Value: "trust.json", Usage: "the fleet's `FILE` of public keys"},
				&cli.BoolFlag{Name: "finish", Usage: "take the old key out"},
				&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and write nothing"},
				forceFlag(), command.JSONFlag(),
			}, r.flags...),
			Action: r.run,
		})
	}
	for _, g := range guides {
		rotate.Subcommands = append(rotate.Subcommands, &cli.Command{
			Name: g.kind, Usage: g.usage, Description: "Example:\n   nixfleet trust rotate " + g.kind,
			Flags: []cli.Flag{command.JSONFlag()},
			Action: func(c *cli.Context) error {
				if c.Bool("json") {
					return command.Document(c, map[string]any{"steps": g.steps})
				}
				_, err := fmt.Fprint(c.App.Writer, numbered(g.steps))
				return err
			},
		})
	}
	return &cli.Command{
		Name: "trust", Usage: "replace the keys that the fleet believes",
		Description: "Example:\n   nixfleet trust rotate release --dry-run",
		Subcommands: []*cli.Command{rotate},
	}
}

// run begins the rotation, or ends it.
func (r rotation) run(c *cli.Context) error {
	path := c.String("trust-file")
	trust, err := loadTrust(c, path)
	if err != nil {
		return err
	}
	if c.Bool("finish") {
		return r.end(c, path, trust)
	}
	if err := r.check(c, trust); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		progress(c, "would write a new key to %s, and its public half beside the present one into %s", c.String("out"),
			path)
	} else if err := made(c, r.begin); err != nil {
		return err
	}
	progress(c, "next:\n%s", strings.TrimSuffix(numbered(r.begun), "\n"))
	return nil
}

func (r rotation) end(c *cli.Context, path string, trust *pki.Trust) error {
	old, err := r.finish(c, trust)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		progress(c, "would take %s out of %s", old, path)
	} else {
		if err := writeTrust(path, trust); err != nil {
			return err
		}
		progress(c, "took %s out of %s", old, path)
		if c.Bool("json") {
			err = command.Document(c, map[string]any{"trustFile": path, "removed": old})
		} else {
			_, err = fmt.Fprint(c.App.Writer, nixBlock(trust))
		}
		if err != nil {
			return err
		}
	}
	progress(c, "next:\n%s", strings.TrimSuffix(numbered(r.finished), "\n"))
	return nil
}

// retire takes the previous key out of a slot.
func retire(kind string, slot *pki.KeySlot) (string, error) {
	if slot == nil || slot.Current == nil || slot.Previous == nil {
		return "", command.Hinted(fmt.Errorf("no rotation of the %s key is under way: the trust file names no previous key",
			kind), "nixfleet trust rotate %s begins one", kind)
	}
	old := slot.Previous
	slot.Previous = nil
	return "the " + kind + " key " + old.Public, nil
}

// retireCacheKey takes the key named --old out, and never the last one.
func retireCacheKey(c *cli.Context, trust *pki.Trust) (string, error) {
	name := c.String("old")
	if name == "" {
		return "", command.Usage("", "--finish needs --old NAME, the cache key to take out")
	}
	named := func(key string) bool { return key == name || strings.HasPrefix(key, name+":") }
	if !slices.ContainsFunc(trust.CacheKeys, named) {
		return "", fmt.Errorf("the trust file names no cache key %s", name)
	}
	trust.CacheKeys = slices.DeleteFunc(trust.CacheKeys, named)
	if len(trust.CacheKeys) == 0 {
		return "", command.Hinted(fmt.Errorf("the cache key %s is the only one: without it hosts fetch nothing", name),
			"nixfleet trust rotate cache --name NEWNAME makes the next one first")
	}
	return "the cache key " + name, nil
}

// unusedCacheName refuses a name that a trusted key has: a host finds a cache's key by its name, so two of one name
// hide each other.
func unusedCacheName(c *cli.Context, trust *pki.Trust) error {
	name := c.String("name")
	for _, key := range trust.CacheKeys {
		if name != "" && strings.HasPrefix(key, name+":") {
			return command.Hinted(fmt.Errorf("the trust file has a cache key named %s already", name),
				"hosts find a key by its name: give the new one another, such as %s-2", name)
		}
	}
	return nil
}

func leakKnownAt(t time.Time) *pki.Timestamp {
	at := pki.At(t.Truncate(time.Second))
	return &at
}

func numbered(steps []string) string {
	var b strings.Builder
	for i, step := range steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, step)
	}
	return b.String()
}
