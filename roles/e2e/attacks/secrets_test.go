package attacks

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/pki"
)

// spellings are the forms in which a private key could be written down.
func spellings(s *scene, k *pki.PrivateKey) [][]byte {
	block, _ := pem.Decode(s.house.pem(k))
	forms := [][]byte{block.Bytes, []byte(base64.StdEncoding.EncodeToString(block.Bytes)[:60])}
	if key, ok := k.Crypto().(ed25519.PrivateKey); ok {
		seed := key.Seed()
		forms = append(forms, seed, []byte(base64.StdEncoding.EncodeToString(seed)), []byte(hex.EncodeToString(seed)))
	}
	return forms
}

// inFile is how the seed of a key reads in the base64 of its file.
func inFile(s *scene, name string, k *pki.PrivateKey) []byte {
	text, err := os.ReadFile(s.path(name))
	s.must(err)
	block, _ := pem.Decode(text)
	at := bytes.Index(block.Bytes, k.Crypto().(ed25519.PrivateKey).Seed())
	start := (at + 2) / 3 * 4 // the first group of four that holds nothing before it
	return []byte(base64.StdEncoding.EncodeToString(block.Bytes)[start : start+36])
}

// After a fleet has enrolled, rolled out, renewed its certificates and refused an attack, no private key and no token
// is in any file, database or log but where it was put.
func TestSecretsStayWhereTheyWerePut(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		newScene(t, dir, func(s *scene) {
			m := s.machine("a")
			s.recovers()
			s.renews(m, len(s.log.text()))
			s.house.forged(func(files map[string][]byte) { clear(files) })
			s.releaseRefused("")
			s.recovers()
			time.Sleep(time.Hour)
			type secret struct {
				name  string
				forms [][]byte
				in    []string // where it was put
			}
			token, err := os.ReadFile(s.path("a", "token"))
			s.must(err)
			parsed, err := pki.ParseToken(token)
			s.must(err)
			secrets := []secret{
				{"release key", spellings(s, s.house.ci), nil},
				{"organisation root", spellings(s, s.house.org), nil},
				{"issuing CA", spellings(s, s.house.caKey), []string{"ca.key"}},
				{"host key", append(spellings(s, s.house.hostKeys["a"]), inFile(s, "a/key", s.house.hostKeys["a"])),
					[]string{"a/key"}},
				{"token", [][]byte{[]byte(parsed.Signature)}, []string{"a/token"}},
			}
			seen := map[string]bool{}
			look := func(place string, data []byte) {
				for _, secret := range secrets {
					for _, form := range secret.forms {
						if !bytes.Contains(data, form) && !bytes.Contains(squeezed(data), form) {
							continue
						}
						if seen[secret.name] = true; !slices.Contains(secret.in, place) {
							t.Errorf("%s has the %s", place, secret.name)
						}
					}
				}
			}
			look("the log", []byte(s.log.text()))
			files := 0
			s.must(filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				place, err := filepath.Rel(s.dir, path)
				files++
				look(place, data)
				return err
			}))
			for _, secret := range secrets {
				if len(secret.in) > 0 && !seen[secret.name] {
					t.Errorf("the %s was not found where it was put, so nothing is shown", secret.name)
				}
			}
			if files < 40 {
				t.Errorf("only %d files were looked at", files)
			}
		})
	})
}

// squeezed is a text without its line ends, so that PEM reads as one line of base64.
func squeezed(data []byte) []byte { return bytes.ReplaceAll(data, []byte("\n"), nil) }
