package operator

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nixfleet/nixops/template"
)

// `nix flake init -t` copies the very tree that init writes.
func TestInitWithoutKeysIsTheTemplate(t *testing.T) {
	app := testApp(t)
	dir := filepath.Join(t.TempDir(), "fleet")
	if code := Run(t.Context(), app, []string{"nixfleet", "init", dir, "--no-keys"}); code != 0 {
		t.Fatalf("exit %d: %s", code, app.ErrWriter)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	have, err := filesBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := fs.Sub(template.Fleet, "fleet")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	err = fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		want = append(want, path)
		in, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		out, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if err == nil && !bytes.Equal(in, out) {
			t.Errorf("%s differs from the template", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(have, want) {
		t.Errorf("wrote %q, the template has %q", have, want)
	}
}
