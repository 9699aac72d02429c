package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

const maxStateFile = 4 << 20

// errUnfit: a state file that is there and cannot be believed: truncated, of
// another version, or changed by somebody.
var errUnfit = errors.New("state file is damaged or foreign")

// directory is the agent's state directory, root's and closed to others.
type directory string

// openDirectory makes the directory or refuses one that others can write.
func openDirectory(path string) (directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if err := ownOnly(path); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return directory(path), nil
}

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

// ownOnly refuses a file or directory that somebody else owns or can write.
func ownOnly(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o)", path, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d", path, st.Uid)
	}
	return nil
}

// envelope is how documents of state lie on disk: with the version of their
// form and a checksum over the body's bytes.
type envelope struct {
	Version int            `json:"version" shape:"R"`
	SHA256  string         `json:"sha256" shape:"R"`
	Body    jsontext.Value `json:"body" shape:"R"`
}

const stateVersion = 1

// write puts v on disk as a whole: file and directory are flushed when it returns.
func (d directory) write(name string, v any) error {
	// A program's words may be in it: what is no UTF-8 must not keep a step from being
	// written ahead.
	body, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err == nil {
		body, err = pki.Canonicalize(body)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	sum := sha256.Sum256(body)
	doc, err := json.Marshal(envelope{stateVersion, hex.EncodeToString(sum[:]), body})
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return replace(d.path(name), append(doc, '\n'), 0o600)
}

// read gives fs.ErrNotExist when there is nothing and errUnfit when what is
// there cannot be believed.
func (d directory) read(name string, v any) error {
	path := d.path(name)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := ownOnly(path); err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	if info.Size() > maxStateFile {
		return fmt.Errorf("%w: %s has %d bytes", errUnfit, path, info.Size())
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return decodeState(doc, v)
}

func decodeState(doc []byte, v any) error {
	var e envelope
	if err := pki.Decode(doc, &e); err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	if e.Version != stateVersion {
		return fmt.Errorf("%w: version %d, only %d is known", errUnfit, e.Version, stateVersion)
	}
	body, err := pki.Canonicalize(e.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != e.SHA256 {
		return fmt.Errorf("%w: the checksum does not fit", errUnfit)
	}
	if err := pki.Decode(body, v); err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	return nil
}

// remove deletes a file for good; one that is not there is no error.
func (d directory) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return syncDir(string(d))
}

// keepNewest removes all but the newest n files.
func (d directory) keepNewest(n int) error {
	entries, err := os.ReadDir(string(d))
	if err != nil || len(entries) <= n {
		return err
	}
	written := make(map[string]time.Time, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		written[e.Name()] = info.ModTime()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return written[b.Name()].Compare(written[a.Name()]) })
	for _, e := range entries[n:] {
		if err := os.Remove(d.path(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// setAside keeps a file that cannot be believed for people to look at.
func (d directory) setAside(name string) (string, error) {
	aside := d.path(name) + ".unfit"
	if err := os.Rename(d.path(name), aside); err != nil {
		return "", fmt.Errorf("set aside %s: %w", name, err)
	}
	return aside, syncDir(string(d))
}

// replace writes a file through a temporary one, flushed, and renames it.
func replace(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = f.Write(data)
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
