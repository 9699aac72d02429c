// Package release makes releases: it declares, builds, pushes, signs and publishes what the hosts of a fleet shall
// run, or signs anew what they run.
//
// It promises that nothing is signed that would not verify, that nothing is signed before every closure is where
// hosts can fetch it, and that a release is published whole or not at all. Each stage has a type: a draft is a
// declaration with its lists; built is a draft with its closures; sealed is what was signed, in memory; what is
// published is told by a Summary.
package release

import (
	"context"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// Config is what a release is made of and how.
type Config struct {
	Dir       string // the release directory, absolute
	FleetName string // of the fleet's file in it
	Source    Source
	Nix       Nix
	Push      Push
	Signing   Signing
	Git       Git
	Windows   Windows
	Keys      Keys

	Resign         bool // sign the present release anew, without building
	DryRun         bool // evaluate and build; push, sign and write nothing
	ReuseUnchanged bool // publish nothing when only the time of signing would change
	NoLoad         bool // leave out that the signed release is loaded as a control plane would

	Progress     io.Writer // gets a line for each step
	JSONProgress bool      // the lines are JSON objects
}

// Source is where the declaration and the closures come from.
type Source struct {
	Flake       string // of the fleet
	Installable string // FLAKE#ATTRIBUTE of the declaration
	FleetFile   string // with the evaluated declaration; "" evaluates Installable
	Closures    string // file that maps hosts to store paths; "" builds
	Hosts       string // to build: auto, auto:exclude=a,b or a,b
	PinURL      string // flake that pinned commits are built from
	InForce     string // release directory to compare with; "" is that of the release, or the usual one beside it
	Revocations List
	Nonces      List
}

// List says where a list comes from; both empty: the fleet keeps no such list.
type List struct {
	Attribute string // of the fleet's flake
	File      string // with the evaluated list, which wins
}

// Nix is the Nix that evaluates, builds and copies.
type Nix struct {
	BinDir, ConfDir, Store string // see nixops.CI
	Jobs                   int    // hosts that are built at the same time
}

// Push is how closures reach a cache.
type Push struct {
	Hook       string // pushes one closure; "" for none
	Jobs       int    // runs of the hook at the same time
	CopyTo     string // store that all closures are copied to; "" for none
	CacheKey   string // file of the key that signs every path for CopyTo; "" for none
	Unverified bool   // do not ask the caches whether hosts can fetch everything
}

// Signing is who signs, and with what signatures are verified before anything is published.
type Signing struct {
	Hook            string // signs one file; "" when KeyFile does
	KeyFile         string // a release key
	TrustFile       string // the fleet's trust.json
	PublicKey       string // base64, that the hook signs with, where there is no trust file
	Algorithm       string // label of the artifacts; "" is the key's own
	AllowUnverified bool   // publish what a hook signed although nothing says with which key
}

// Git is how a release is committed; the zero value leaves git alone.
type Git struct {
	Commit          bool
	Remote, Branch  string // to push to; "" for none
	Template        string // of the commit's message
	UserName, Email string // of the committer; "" is as git is configured
}

// Windows are the times that a head grants. Signing anew keeps those of the present head, unless they are set here.
type Windows struct {
	Confirm, Lease       time.Duration
	SetConfirm, SetLease bool
}

// Keys opens private keys and reads trust files.
type Keys interface {
	// SigningKey reads a private key that is about to sign, and refuses one that other users can read.
	SigningKey(path string) (*pki.PrivateKey, error)
	// Check makes sure that a key can be opened later, when nobody is there to be asked for a passphrase.
	Check(path string) error
	// Clear gives work the path of a key that a program without encryption can read; "" stays "".
	Clear(path string, work func(path string) error) error
	// Trust reads a trust file; the warnings are of misspelt members.
	Trust(path string) (trust *pki.Trust, warnings []string, err error)
}

// Summary is what became of a release.
type Summary struct {
	Released    bool               `json:"released"`
	Unchanged   bool               `json:"unchanged"`
	DryRun      bool               `json:"dryRun"`
	Resigned    bool               `json:"resigned"`
	SignedAt    *pki.Timestamp     `json:"signedAt"`
	CICommit    *string            `json:"ciCommit"`
	GitCommit   *string            `json:"gitCommit"`
	FleetHash   string             `json:"fleetResolvedHash"`
	Channels    map[string]Channel `json:"channels"`
	Changed     []HostChange       `json:"changedHosts"`
	ExpiredPins []string           `json:"expiredPins"`
	PrunedNonce int                `json:"prunedNonces"`
	PrunedHosts []string           `json:"prunedNonceHosts"` // whose nonces had expired
}

// Channel is one channel of a release.
type Channel struct {
	RolloutID  string `json:"rolloutId"`
	Intent     string `json:"intent"`
	OpenedAt   string `json:"openedAt"`
	Hosts      int    `json:"hosts"`
	NewRollout bool   `json:"newRollout"`
}

// HostChange is a host whose closure is another than in the release before.
type HostChange struct {
	Host string  `json:"host"`
	From *string `json:"from"`
	To   *string `json:"to"`
}

// releaser is one run. Its fields stay as they are once Run has filled them.
type releaser struct {
	cfg Config
	*narrator
	repo    *repository // nil when nothing is committed
	signer  *signer
	roots   string          // links to what is built, until it is pushed; "" when nothing is
	warned  map[string]bool // of trust files, said once
	follows string          // directory of the release that this one follows; "" is cfg.Dir
}

// Run makes one release. The error carries the exit code: 1 for configuration, evaluation or build, 2 for a hook and
// 3 for what does not verify.
func Run(ctx context.Context, cfg Config) (*Summary, error) {
	r := &releaser{cfg: cfg, narrator: newNarrator(cfg.Progress, cfg.JSONProgress), warned: map[string]bool{}}
	var err error
	if r.signer, err = r.newSigner(); err != nil {
		return nil, err
	}
	if r.repo, err = openRepository(ctx, cfg.Dir, cfg.Git, cfg.Resign); err != nil {
		return nil, err
	}
	if cfg.Resign {
		b, err := r.present(ctx)
		if err != nil {
			return nil, err
		}
		return r.publish(ctx, b)
	}
	if path := cfg.Push.CacheKey; path != "" && !cfg.DryRun {
		if err := cfg.Keys.Check(path); err != nil {
			return nil, err
		}
	}
	// An hour lies between the first build and the push.
	if r.roots, err = os.MkdirTemp("", "nixfleet-roots-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(r.roots)
	d, err := r.declare(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.findInForce(ctx, d); err != nil {
		return nil, err
	}
	b, err := r.build(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := r.push(ctx, b); err != nil {
		return nil, err
	}
	return r.publish(ctx, b)
}

// draft is a fleet's declaration with its lists, not yet stamped.
type draft struct {
	declaration         *fleet.Declaration
	ciCommit            *string
	revocations, nonces fleet.List
	expired             []string           // hosts whose pins had ended
	systems             []nixops.FlakeHost // that the flake declares; nil when nothing is built
}

// built is a draft whose closures are known.
type built struct {
	draft
	closures map[string]string // host -> store path, where the path is known
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
