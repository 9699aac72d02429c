//go:build mutants

package attacks

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/pki"
)

// overlay makes copies of the files that have the checks, in which each of them can be left out by a variable of the
// environment, and the document that has the go command compile them in the place of the files.
func overlay(t *testing.T, root string) string {
	t.Helper()
	dir, texts := t.TempDir(), map[string]string{}
	packages := map[string]string{} // directory -> name
	done := map[string]bool{}
	for _, actor := range actors {
		for _, a := range actor.attacks {
			if done[a.lack.key()] {
				continue
			}
			done[a.lack.key()] = true
			for _, l := range append(a.lack.behind, a.lack) {
				if texts[l.file] == "" {
					data, err := os.ReadFile(filepath.Join(root, l.file))
					if err != nil {
						t.Fatal(err)
					}
					texts[l.file] = string(data)
					name := regexp.MustCompile(`(?m)^package (\w+)`).FindStringSubmatch(texts[l.file])
					packages[filepath.Dir(l.file)] = name[1]
				}
				texts[l.file] = strings.Replace(texts[l.file], l.is,
					strings.ReplaceAll(l.was, "LACKS", fmt.Sprintf("lacks(%q)", a.lack.key())), 1)
			}
		}
	}
	replace := map[string]string{}
	put := func(name, text string) {
		path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, name)] = path
	}
	for name, text := range texts {
		put(name, text)
	}
	for at, name := range packages {
		put(at+"/lacks.go", "package "+name+"\n\nimport \"os\"\n\n"+
			"func lacks(check string) bool { return os.Getenv(\"NIXFLEET_LACKS\") == check }\n")
	}
	doc, err := pki.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// key names a check in the environment.
func (l lack) key() string { return pki.HashHex([]byte(l.file + "\x00" + l.is))[:16] }

// TestMutants leaves out the check of each attack, and the attack must succeed then.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "attacks")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay(t, root), "-o", binary,
		"nixfleet/roles/e2e/attacks").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var all sync.WaitGroup
	places := make(chan struct{}, 2)
	for _, actor := range actors {
		for _, a := range actor.attacks {
			all.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, binary, "-test.timeout", "4m", "-test.run",
					"^TestAttacks$/^"+pattern(actor.who)+"$/^"+pattern(a.name)+"$")
				cmd.Env = append(os.Environ(), "NIXFLEET_LACKS="+a.lack.key())
				said, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(said), succeeded) {
					t.Errorf("%s: without %q it is refused all the same (%v)\n%s", a.name, a.lack.is, err, tail(said))
				}
			})
		}
	}
	all.Wait()
}

// pattern matches the name of a subtest.
func pattern(name string) string { return regexp.QuoteMeta(strings.ReplaceAll(name, " ", "_")) }

func tail(text []byte) []byte { return text[max(0, len(text)-3000):] }
