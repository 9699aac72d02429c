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

// Fetcher describes how a host fetches: the caches that it asks, and the keys (NAME:BASE64) whose signatures it
// accepts. Without keys, Deliver does not know which signatures the host accepts and checks only that a cache has
// the path.
type Fetcher struct {
	Caches, Keys []string
}

// System is the store path of a host's new system, with the ways in which the host may fetch it: as the new system
// configures the host and, if that is known, as the host is configured now.
type System struct {
	Path     string
	Fetchers []Fetcher
}

// Delivery says which closures to copy to which store, and what to verify there.
type Delivery struct {
	Closures []string // store paths to copy
	Dest     string   // the store to copy to; "" means that something else has already copied the closures
	KeyFile  string   // signs every path for Dest, as `nix-store --generate-binary-cache-key` writes it; "" for none
	Systems  []System // the systems to verify; this machine's store has them
	// Unverified skips the verification and trusts Nix that everything arrived.
	Unverified bool
	Say        func(format string, args ...any) // gets progress and warnings; must be safe for concurrent calls
}

// Deliver copies closures and verifies that hosts can fetch them: the destination, or a cache that the host asks, has
// every path of the host's system with a signature that the host accepts. Deliver asks for a path once, even if many
// systems have it. It asks the caches themselves and does not use the answers that Nix has stored: Nix believes those
// for a month, and a cache may lose a path in that time. The error is ErrNotFound, ErrUnsigned or ErrUnreachable if
// a host cannot fetch a path.
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

// addSignatures signs the paths that the destination already had without a signature of the key, because nix copy does
// not change a path that the destination has. A cache that signs by itself may refuse the signatures. That is not an
// error here, because Deliver verifies afterwards that hosts accept the signatures that the cache has.
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

// signAt signs paths in the destination store. If the store does not accept the signatures, signAt prints a warning
// and returns no error.
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
		d.Say("warning: %s does not accept signatures of this key; hosts must trust the signatures that it has: %v",
			d.Dest, err)
	}
	return nil
}

// publicHalf reads a signing key file, NAME:BASE64, and returns the public key.
func publicHalf(file string) (signature.PublicKey, error) {
	text, err := disk.ReadLinked(file, maxFact)
	if err != nil {
		return signature.PublicKey{}, fmt.Errorf("signing key: %w", err)
	}
	key, err := signature.LoadSecretKey(strings.TrimSpace(string(text)))
	if err != nil {
		// The parser's error may quote the secret key, so it is not part of this error.
		return signature.PublicKey{}, fmt.Errorf("signing key %s is not one that nix-store --generate-binary-cache-key wrote",
			file)
	}
	return key.ToPublicKey(), nil
}

// at returns a nix command that works on another store than c.Store. Nix does not look elsewhere for a path that the
// other store lacks.
func (c CI) at(store string, args ...string) command {
	n := nix{bin: c.Nix, confDir: c.NixConfDir, store: store, options: []string{"--option", "substitute", "false"}}
	cmd := n.command("nix", args...)
	cmd.timeout = deliveryTimeout
	return cmd
}

// withoutMemory calls work with environment variables that make Nix forget what caches answered before. With the old
// answers, Nix would take a closure for missing up to an hour after it arrived, and for present up to a month after
// the cache lost it. The commands of one call of work share a new, empty memory, so that Nix asks for each path once;
// with the times to live set to 0, Nix would ask three times.
func withoutMemory(work func(fresh []string) error) error {
	dir, err := os.MkdirTemp("", "nixfleet-answers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return work([]string{"XDG_CACHE_HOME=" + dir, "NIX_CACHE_HOME=" + filepath.Join(dir, "nix")})
}

// FetcherOf reads from the nix.conf of a system how a host fetches once it runs that system. The result is nil when
// c.Store does not have the system, when the system has no nix.conf, or when c.Store is not on this machine's disk.
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
		return nil, fmt.Errorf("read how hosts of %s fetch: %w", system, err)
	}
	return parseFetcher(string(text)), nil
}

// parseFetcher reads the settings of nix.conf that say which caches a host asks and which keys it trusts.
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
