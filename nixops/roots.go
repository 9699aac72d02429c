package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
)

func (m *machine) Realise(ctx context.Context, closure string, progress func(string)) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	// The root may name a path that is not there yet; the collector leaves it alone.
	if err := m.link(closure, path); err != nil {
		return fmt.Errorf("gc root for %s: %w", closure, err)
	}
	c := m.register(closure, path)
	c.args = append(c.args, m.fetch...)
	c.lines = progress
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("realise %s: %w", closure, classify(err))
	}
	if got, err := os.Readlink(m.root + rootsDir + "/" + closure); err != nil || got != path {
		return fmt.Errorf("realise %s: got %q: %w", closure, got, errors.Join(ErrMismatch, err))
	}
	return m.nix.valid(ctx, closure)
}

// register has Nix itself make the root again once the path is valid. Our link alone
// is not enough: a collector that read the roots while the path was not valid yet, and
// looks for temporary ones only after Nix has gone, would take the path away.
// Nix tells a running collector about roots it makes.
func (m *machine) register(name, path string) command {
	return m.nix.command("nix-store", "--realise", path, "--add-root", m.root+rootsDir+"/"+name)
}

func (m *machine) link(name, path string) error {
	return noSpace(disk.ReplaceLink(path, m.root+rootsDir+"/"+name))
}

// noSpace adds ErrNoSpace to a full disk's error.
func noSpace(err error) error {
	if err != nil && disk.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// checkRoot: a root is named by a word or after its closure.
// CheckRoot says what is wrong with the name of a garbage collector root.
func CheckRoot(name string) error {
	if fleet.ValidClosure(name) || unitNames.MatchString(name) {
		return nil
	}
	return fmt.Errorf("gc root name %q: only letters, digits and . _ @ -, or a closure", name)
}

func (m *machine) AddRoot(ctx context.Context, name, closure string) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	if err := CheckRoot(name); err != nil {
		return err
	}
	if err := m.link(name, path); err != nil {
		return fmt.Errorf("gc root %s: %w", name, err)
	}
	err = m.nix.valid(ctx, closure)
	if errors.Is(err, ErrNotClosure) {
		return nil
	}
	if err == nil {
		c := m.register(name, path)
		c.args = append(c.args, "--option", "substitute", "false")
		c.timeout = quick
		_, err = c.run(ctx)
	}
	if err != nil {
		return fmt.Errorf("gc root %s: %w", name, classify(err))
	}
	return nil
}

func (m *machine) RemoveRoot(ctx context.Context, name string) error {
	if err := CheckRoot(name); err != nil {
		return err
	}
	err := os.Remove(m.root + rootsDir + "/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (m *machine) Roots(ctx context.Context) (map[string]string, error) {
	entries, err := os.ReadDir(m.root + rootsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	roots := make(map[string]string, len(entries))
	for _, e := range entries {
		target, err := os.Readlink(m.root + rootsDir + "/" + e.Name())
		if err == nil && closureOf(target) != "" {
			roots[e.Name()] = closureOf(target)
		}
	}
	return roots, nil
}
