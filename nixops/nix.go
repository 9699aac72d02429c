package nixops

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// nix runs the Nix command line. It uses only commands whose interface has been stable for years; nixos-rebuild is not
// such a command.
type nix struct {
	bin     string // directory of the binaries; "" means PATH
	confDir string
	store   string   // --store: a directory or URL; "" means the machine's own store
	cache   string   // XDG_CACHE_HOME; "" does not set it
	home    string   // HOME; "" does not set it; nix-env makes links there
	options []string // added to every command
}

func (n nix) tool(name string) string {
	if n.bin == "" {
		return name
	}
	return n.bin + "/" + name
}

// command returns a run of one of the tools. It puts the caller's arguments first, so that errors can name the verb.
func (n nix) command(tool string, args ...string) command {
	c := command{path: n.tool(tool), args: args}
	if n.store != "" {
		c.args = append(c.args, "--store", n.store)
	}
	if tool == "nix" {
		c.args = append(c.args, "--extra-experimental-features", "nix-command flakes")
	}
	c.args = append(c.args, n.options...)
	if strings.HasPrefix(n.store, "/") {
		// nix-env makes its user profiles below NIX_STATE_DIR, whatever store it works on.
		c.env = append(c.env, "NIX_STATE_DIR="+n.store+"/nix/var/nix")
	}
	if n.confDir != "" {
		// Nix must read no configuration but that of the directory.
		c.env = append(c.env, "NIX_CONF_DIR="+n.confDir, "NIX_USER_CONF_FILES=")
	}
	if n.cache != "" {
		c.env = append(c.env, "XDG_CACHE_HOME="+n.cache)
	}
	if n.home != "" {
		c.env = append(c.env, "HOME="+n.home)
	}
	return c
}

// substitution returns the options for fetching from pinned caches. They keep Nix from storing the answers of a cache:
// with stored answers, Nix would take a closure for missing up to an hour after it arrived, or for unsigned up to a
// month after it was signed.
func substitution(substituters, keys []string) []string {
	options := []string{
		"--option", "require-sigs", "true",
		"--option", "narinfo-cache-positive-ttl", "0",
		"--option", "narinfo-cache-negative-ttl", "0",
		"--option", "connect-timeout", "10",
		"--option", "stalled-download-timeout", "60",
		"--option", "download-attempts", "3",
		"--option", "max-jobs", "0",
		// What Nix registers as valid is on the disk first: power may be lost right after a download.
		"--option", "fsync-store-paths", "true",
		"--option", "builders", "",
	}
	if substituters != nil {
		options = append(options, "--option", "substituters", strings.Join(substituters, " "),
			"--option", "extra-substituters", "")
	}
	if keys != nil {
		options = append(options, "--option", "trusted-public-keys", strings.Join(keys, " "),
			"--option", "extra-trusted-public-keys", "")
	}
	return options
}

// classify adds to an error the sentinel that fits the error text of Nix (2.26). The order matters: Nix also reports
// broken downloads when the disk is full, and also reports an unsigned path as not found.
func classify(err error) error {
	failed, ok := errors.AsType[*commandError](err)
	if !ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, c := range []struct {
		sentinel error
		words    []string
	}{
		{ErrNoSpace, []string{"No space left on device", "database or disk is full", "Disk quota exceeded"}},
		{ErrTruncated, []string{
			"No progress is possible", "Truncated zstd input", "truncated bzip2 input", "truncated gzip input",
		}},
		{ErrUnsigned, []string{
			"failed to read compressed data", "Failed to open archive",
			"not signed by any of the keys", "lacks a signature by a trusted key", "lacks a valid signature",
			"hash mismatch", "bad archive", "is corrupt",
		}},
		{ErrNotFound, []string{"does not exist in binary cache", "HTTP error 404"}},
		{ErrUnreachable, []string{
			"unable to download", "Could not connect", "Could not resolve", "cannot connect",
			"timed out", "Timeout was reached", "is incomplete", "unexpected end-of-file", "Connection reset",
		}},
		{ErrNotFound, []string{"don't know how to build these paths"}},
	} {
		for _, w := range c.words {
			if strings.Contains(failed.stderr, w) {
				return fmt.Errorf("%w: %w", c.sentinel, err)
			}
		}
	}
	return err
}

// quick bounds a command that only uses the store's database.
const quick = 60 * time.Second

// valid returns ErrNotClosure if the path is not valid in the store. A path that exists need not be valid.
func (n nix) valid(ctx context.Context, closure string) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	c := n.command("nix-store", "--check-validity", path)
	c.timeout = quick
	_, err = c.run(ctx)
	if failed, ok := errors.AsType[*commandError](err); ok && strings.Contains(failed.stderr, "is not valid") {
		return fmt.Errorf("%s: %w", path, ErrNotClosure)
	}
	return err
}
