package nixops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// verifyTime bounds the look at the contents of one part of a closure. Nix reads and hashes some hundred megabytes a
// second.
const verifyTime = 30 * time.Minute

// repair compares the contents of a closure with the hashes that the store has of them, which are those that were
// signed, and fetches again what differs. It returns ErrRepaired if anything did.
func (n nix) repair(ctx context.Context, path string, fetch []string, progress func(string)) error {
	paths, err := n.requisites(ctx, path)
	if err != nil {
		return err
	}
	damaged, err := n.damaged(ctx, paths)
	if err != nil || len(damaged) == 0 {
		return err
	}
	for part := range slices.Chunk(damaged, pathsAtOnce) {
		c := n.command("nix-store", append([]string{"--repair-path"}, part...)...)
		c.args = append(c.args, fetch...)
		c.lines = progress
		if _, err := c.run(ctx); err != nil {
			return fmt.Errorf("repair %s: %w", path, classify(err))
		}
	}
	if still, err := n.damaged(ctx, damaged); err != nil || len(still) > 0 {
		return fmt.Errorf("repair %s: %v are damaged still: %w", path, still, errors.Join(ErrUnsigned, err))
	}
	return fmt.Errorf("%w: %s", ErrRepaired, strings.Join(damaged[:min(len(damaged), 5)], " "))
}

// pathsAtOnce is how many paths one command gets.
const pathsAtOnce = 200

// requisites returns the paths of a closure.
func (n nix) requisites(ctx context.Context, path string) ([]string, error) {
	c := n.command("nix-store", "--query", "--requisites", path)
	c.timeout = quick
	out, err := c.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("paths of %s: %w", path, classify(err))
	}
	return strings.Fields(string(out)), nil
}

// damaged returns the paths whose contents are not what the store has a hash of. nix-store --verify-path names them in
// quotes, for example "path '/nix/store/…' was modified! expected hash '…', got '…'".
func (n nix) damaged(ctx context.Context, paths []string) ([]string, error) {
	var bad []string
	for part := range slices.Chunk(paths, pathsAtOnce) {
		c := n.command("nix-store", append([]string{"--verify-path"}, part...)...)
		c.timeout = verifyTime
		var said []string
		c.lines = func(line string) { said = append(said, line) }
		_, err := c.run(ctx)
		if err == nil {
			continue
		}
		found := len(bad)
		for _, path := range part {
			if slices.ContainsFunc(said, func(line string) bool {
				return strings.Contains(line, "'"+path+"'") && strings.Contains(line, "modified")
			}) {
				bad = append(bad, path)
			}
		}
		if len(bad) == found {
			return bad, fmt.Errorf("verify contents: %w", err)
		}
	}
	return bad, nil
}
