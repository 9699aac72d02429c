package nixops

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nix-community/go-nix/pkg/storepath"

	"nixfleet/nixops/fleet"
)

const storeDir = storepath.StoreDir // /nix/store, also in a private store

// StorePath returns the logical store path of a closure, given its base name.
func StorePath(closure string) (string, error) {
	if !fleet.ValidClosure(closure) {
		return "", fmt.Errorf("closure %q: %w", closure, ErrNotClosure)
	}
	return storeDir + "/" + closure, nil
}

// closureOf returns the base name of the store path that contains a path, or "" if none does.
func closureOf(path string) string {
	rest, ok := strings.CutPrefix(path, storeDir+"/")
	if !ok {
		return ""
	}
	base, _, _ := strings.Cut(rest, "/")
	return base
}

// resolve follows every link in an absolute path, as a process with the root directory root would ("" means the
// machine's own root), and returns the path as that process would name it. If a part does not exist, resolve appends
// the rest of the path unchanged and returns fs.ErrNotExist.
func resolve(root, path string) (string, error) {
	todo := strings.Split(filepath.Clean(path), "/")
	done := "/"
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, part)
		info, err := os.Lstat(root + next)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return filepath.Join(append([]string{next}, todo...)...), fs.ErrNotExist
			}
			return "", fmt.Errorf("resolve %s: %w", path, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("resolve %s: too many links", path)
		}
		target, err := os.Readlink(root + next)
		if err != nil {
			return "", fmt.Errorf("resolve %s: %w", path, err)
		}
		if filepath.IsAbs(target) {
			// A profile of a private store may lead to itself by a path that includes root.
			if inner, ok := strings.CutPrefix(target, root+"/"); ok && root != "" {
				target = "/" + inner
			}
			done = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}
