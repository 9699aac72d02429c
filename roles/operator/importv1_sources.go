package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"nixfleet/roles/command"
)

// Bounds of what import-v1 reads of a repository.
const (
	maxSources    = 10_000  // files
	maxSourceFile = 1 << 20 // bytes
)

// sourceWord is a word of v1's Nix code or jobs whose meaning differs. The order is that in which they are said.
type sourceWord struct {
	word string
	job  bool // of a CI job, not of Nix code
	diff difference
}

var sourceWords = []sourceWord{
	{word: "isVm = true", diff: difference{V1: "makes a virtual machine", Here: "mkHost refuses it", Blocks: true,
		Next: "import a module for virtual machines, such as nixpkgs' profiles/qemu-guest.nix"}},
	{word: "hostSpec", diff: difference{V1: "makes users, keys and a time zone of it",
		Here: "values below config.hostSpec only",
		Next: "declare these in a module of the fleet"}},
	{word: "mergeFleets", diff: difference{V1: "lets the last of two policies of one name count",
		Here: "a policy that two parts declare is an error", Next: "keep one of them"}},
	{word: "mkFleet {", diff: difference{V1: "mkFleet takes a module", Here: "an attribute set; `imports` is refused",
		Next: "join files with mkFleet (mergeFleets [ (import ./a.nix) (import ./b.nix) ])"}},
	{word: "confirmDeadlineSecs", diff: difference{V1: "the control plane's own confirm window",
		Here: "agents of nixfleet go by the window in the signed head", Next: "nixfleet release --confirm-window TIME"}},
	{word: "strict = true", diff: difference{V1: "refuses its own agent's manifest requests without the header",
		Here: "wants the header on POST requests only; a git source then needs both lists in the release"}},
	{word: "tpmCaSignWrapper", diff: difference{V1: "the key lives in a TPM", Here: "the option is the same",
		Next: "nixfleet keygen issuing-ca --public-key FILE makes the certificate, where the root is"}},
	{word: "--reuse-unchanged-signature", job: true, diff: difference{V1: "compares closures alone",
		Here: "reuses a signature for the very same bytes only"}},
	{word: "nixfleet-release", job: true, diff: difference{V1: "publishes what the sign hook wrote",
		Here: "the name and all flags work; nothing is published that does not verify",
		Next: "give --trust-file, so that this does not depend on the built systems"}},
}

// readSources looks for words in the Nix files and CI jobs of the repository, each named where it stands first.
func (v *v1Fleet) readSources() error {
	seen := map[string]bool{}
	files := 0
	err := filepath.WalkDir(v.dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || path == v.release):
			return fs.SkipDir
		case !entry.Type().IsRegular() || !strings.HasSuffix(path, ".nix") && !isJob(path):
			return nil
		}
		if files++; files > maxSources {
			return fs.SkipAll
		}
		text, err := command.ReadFile(path, maxSourceFile)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		v.readSource(path, string(text), seen)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return command.Hinted(err, "import-v1 takes the directory of the fleet's repository")
	}
	return err
}

// isJob says whether a file is one of a CI system.
func isJob(path string) bool {
	name := filepath.Base(path)
	return name == ".gitlab-ci.yml" || slices.Contains([]string{".yml", ".yaml"}, filepath.Ext(name)) &&
		strings.Contains(filepath.ToSlash(path), "/workflows/")
}

// readSource looks at one file.
func (v *v1Fleet) readSource(path, text string, seen map[string]bool) {
	n, job := 0, isJob(path)
	for line := range strings.Lines(text) {
		n++
		code, _, _ := strings.Cut(line, "#")
		for _, w := range sourceWords {
			if seen[w.word] || w.job != job || !strings.Contains(code, w.word) {
				continue
			}
			seen[w.word] = true
			d := w.diff
			d.Where = fmt.Sprintf("%s:%d %s", path, n, strings.TrimSuffix(w.word, " {"))
			v.add(d)
		}
	}
}
