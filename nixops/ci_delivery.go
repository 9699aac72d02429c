package nixops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"

	"nixfleet/nixops/disk"
)

// Fetcher is how a host fetches: the caches that it asks, and the keys (NAME:BASE64) whose signatures it accepts.
// Without keys it is not known what it accepts, and the presence of a path is all that can be asked for.
type Fetcher struct {
	Caches, Keys []string
}

// System is a host's new system, by its store path, with all who will fetch it: the host as its new system
// configures it, and where it is known the host as it runs now.
type System struct {
	Path     string
	Fetchers []Fetcher
}

// Delivery is the way of closures to where hosts fetch them.
type Delivery struct {
	Closures []string // store paths to copy
	Dest     string   // the store to copy to; "" when something else has pushed them
	KeyFile  string   // signs every path for Dest, as `nix-store --generate-binary-cache-key` writes it; "" for none
	Systems  []System // what is verified: systems in the store of this machine
	// Unverified takes Nix's word that everything arrived.
	Unverified bool
	Say        func(format string, args ...any) // progress and warnings; must be safe for concurrent calls
}

// Deliver copies closures and makes sure that hosts can fetch them: every path of every system is at the destination
// or at a cache that its host asks, with a signature that the host accepts. A path that many systems have is asked
// for once. The caches themselves are asked, not what Nix remembers of them: that it believes for a month, in which a
// cache may lose what it had. ErrNotFound, ErrUnsigned and
// ErrUnreachable say what is wrong.
func (c CI) Deliver(ctx context.Context, d Delivery) error {
	if d.Dest != "" {
		if err := c.Copy(ctx, d.Closures, d.Dest, d.KeyFile); err != nil {
			return err
		}
	}
	if d.Unverified {
		if d.Dest == "" || d.KeyFile == "" || len(d.Closures) == 0 {
			return nil
		}
		return c.signAt(ctx, d, slices.Concat([]string{"--recursive"}, d.Closures))
	}
	w, err := c.wanted(ctx, d)
	if err != nil || len(w.paths) == 0 {
		return err
	}
	if d.Dest != "" {
		if err := c.ask(ctx, d, w, d.Dest, w.all()); err != nil {
			return err
		}
		if err := c.addSignatures(ctx, d, w); err != nil {
			return err
		}
	}
	for _, cache := range w.caches() {
		if err := c.ask(ctx, d, w, cache, w.openAt(cache)); err != nil {
			return err
		}
	}
	return w.verdict()
}

// addSignatures signs at the destination what was there before without a signature of the key: nix copy leaves alone
// what the destination has. A cache that signs by itself may refuse; whether hosts accept what it has is asked anyway.
func (c CI) addSignatures(ctx context.Context, d Delivery, w *wantedPaths) error {
	if d.KeyFile == "" {
		return nil
	}
	key, err := publicHalf(d.KeyFile)
	if err != nil {
		return err
	}
	var without []string
	for _, path := range w.all() {
		if info := w.paths[path].at[d.Dest]; info != nil && !info.signedBy(path, []signature.PublicKey{key}) {
			without = append(without, path)
		}
	}
	if len(without) == 0 {
		return nil
	}
	d.Say("adding signatures of %s to %d paths that %s had before", key.Name, len(without), d.Dest)
	for part := range slices.Chunk(without, askedAtOnce) {
		if err := c.signAt(ctx, d, part); err != nil {
			return err
		}
	}
	return c.ask(ctx, d, w, d.Dest, without)
}

// signAt signs paths where they are. Only the end of ctx is an error: that the store does not accept signatures is
// told.
func (c CI) signAt(ctx context.Context, d Delivery, paths []string) error {
	key, err := filepath.Abs(d.KeyFile)
	if err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	sign := c.at(d.Dest, slices.Concat([]string{"store", "sign", "--key-file", key}, paths)...)
	err = withoutMemory(func(fresh []string) error {
		sign.env = append(sign.env, fresh...)
		_, err := sign.run(ctx)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.Say("warning: %s does not accept signatures of this key; hosts must trust those that it has: %v", d.Dest, err)
	}
	return nil
}

// publicHalf reads a signing key file, NAME:BASE64.
func publicHalf(file string) (signature.PublicKey, error) {
	text, err := disk.ReadLinked(file, maxFact)
	if err != nil {
		return signature.PublicKey{}, fmt.Errorf("signing key: %w", err)
	}
	key, err := signature.LoadSecretKey(strings.TrimSpace(string(text)))
	if err != nil {
		// The error of the parser may repeat what it parsed.
		return signature.PublicKey{}, fmt.Errorf("signing key %s is not one that nix-store --generate-binary-cache-key wrote",
			file)
	}
	return key.ToPublicKey(), nil
}

// at is a command of Nix for another store than the one that is built in. What is missing there is not looked for
// elsewhere.
func (c CI) at(store string, args ...string) command {
	n := nix{bin: c.Nix, confDir: c.NixConfDir, store: store, options: []string{"--option", "substitute", "false"}}
	cmd := n.command("nix", args...)
	cmd.timeout = deliveryTimeout
	return cmd
}

// withoutMemory gives work the variables by which Nix remembers nothing that caches answered before: it would take a
// closure for missing for an hour after it arrived, and for a month for present after the cache lost it. Within the
// work it remembers, so that each path is asked for once; with the times to live set to 0 it would ask three times.
func withoutMemory(work func(fresh []string) error) error {
	dir, err := os.MkdirTemp("", "nixfleet-answers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return work([]string{"XDG_CACHE_HOME=" + dir, "NIX_CACHE_HOME=" + filepath.Join(dir, "nix")})
}

// FetcherOf reads how a host fetches once it runs a system of the store that is built in: nix.conf of the system. It
// is nil when the store does not have the system, or the system has no such file.
func (c CI) FetcherOf(system string) (*Fetcher, error) {
	root := ""
	switch {
	case filepath.IsAbs(c.Store):
		root = strings.TrimSuffix(c.Store, "/")
	case c.Store != "":
		return nil, nil
	}
	path, err := resolve(root, system+"/etc/nix/nix.conf")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := disk.Read(root+path, maxTrust)
	if err != nil {
		return nil, fmt.Errorf("how hosts of %s fetch: %w", system, err)
	}
	return parseFetcher(string(text)), nil
}

// parseFetcher reads the settings of nix.conf that say what is asked and whom a host believes.
func parseFetcher(conf string) *Fetcher {
	f, more := &Fetcher{}, &Fetcher{}
	for line := range strings.Lines(conf) {
		line, _, _ = strings.Cut(line, "#")
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		switch words := strings.Fields(value); strings.TrimSpace(name) {
		case "substituters":
			f.Caches = words
		case "trusted-public-keys":
			f.Keys = words
		case "extra-substituters":
			more.Caches = append(more.Caches, words...)
		case "extra-trusted-public-keys":
			more.Keys = append(more.Keys, words...)
		}
	}
	return &Fetcher{Caches: append(f.Caches, more.Caches...), Keys: append(f.Keys, more.Keys...)}
}
