package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
)

func (m *machine) Realise(ctx context.Context, closure string, progress func(string), how ...Fetch) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	// The root may lead to a path that does not exist yet; the garbage collector does not remove such a root.
	if err := link(m.root, closure, path); err != nil {
		return fmt.Errorf("gc root for %s: %w", closure, err)
	}
	c := m.nix.register(m.root, closure, path)
	c.args = append(c.args, m.fetch...)
	c.lines = progress
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("realise %s: %w", closure, classify(err))
	}
	if got, err := os.Readlink(m.root + rootsDir + "/" + closure); err != nil || got != path {
		return fmt.Errorf("realise %s: got %q: %w", closure, got, errors.Join(ErrMismatch, err))
	}
	if err := m.nix.valid(ctx, closure); err != nil || !slices.Contains(how, Verified) {
		return err
	}
	return m.nix.repair(ctx, path, m.fetch, progress)
}

// register makes Nix itself make the root again once the path is valid. Our link alone is not enough: a garbage
// collector may have read the roots while the path was not valid yet, and may look for temporary roots only after Nix
// has ended; it would then delete the path. Nix tells a running collector about the roots that it makes.
func (n nix) register(root, name, path string) command {
	return n.command("nix-store", "--realise", path, "--add-root", root+rootsDir+"/"+name)
}

// link makes a garbage collector root of that name, without Nix.
func link(root, name, path string) error {
	return noSpace(disk.ReplaceLink(path, root+rootsDir+"/"+name))
}

// noSpace adds ErrNoSpace to an error that a full disk caused.
func noSpace(err error) error {
	if err != nil && disk.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// CheckRoot returns an error if the name of a garbage collector root is neither a word nor a closure's name.
func CheckRoot(name string) error {
	if fleet.ValidClosure(name) || unitNames().MatchString(name) {
		return nil
	}
	return fmt.Errorf("gc root name %q is not a closure; other names may contain only letters, digits and . _ @ -", name)
}

func (m *machine) AddRoot(ctx context.Context, name, closure string) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	if err := CheckRoot(name); err != nil {
		return err
	}
	if err := link(m.root, name, path); err != nil {
		return fmt.Errorf("gc root %s: %w", name, err)
	}
	err = m.nix.valid(ctx, closure)
	if errors.Is(err, ErrNotClosure) {
		return nil
	}
	if err == nil {
		c := m.nix.register(m.root, name, path)
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
