package attacks

import (
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/pki"
)

// flip turns one bit of a file over, as a dying disk does.
func flip(s *scene, path string, chance *rand.Rand) {
	data, err := os.ReadFile(path)
	s.must(err)
	if len(data) == 0 {
		return
	}
	data[chance.IntN(len(data))] ^= 1 << chance.IntN(8)
	s.must(os.WriteFile(path, data, 0o600))
}

// filesBelow are the regular files below a directory that have something in them.
func filesBelow(s *scene, dir string) []string {
	var files []string
	s.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// With a bit turned over in any file of an agent's state, or of the release that a control plane has accepted, the
// fleet goes on by itself: what was damaged is noticed, and had again.
func TestOneBitOfAnyStateFile(t *testing.T) {
	chance := rand.New(rand.NewPCG(11, 8))
	tried := 0
	for _, part := range []string{"a/state", "cp/accepted"} {
		t.Run(strings.ReplaceAll(part, "/", " "), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				newScene(t, dir, func(s *scene) {
					m := s.machine("a")
					for _, file := range filesBelow(s, s.path(part)) {
						if _, err := os.Stat(file); err != nil {
							continue // it was of an activation that is over
						}
						if strings.HasPrefix(part, "a") {
							m.halt()
							flip(s, file, chance)
							m.life.Lock()
							m.start()
							m.life.Unlock()
						} else {
							s.plane.stop()
							flip(s, file, chance)
							s.plane.start()
						}
						tried++
						s.recovers()
						if s.t.Failed() {
							s.t.Fatalf("after a bit of %s was turned over", file)
						}
					}
				})
			})
		})
	}
	if tried < 10 {
		t.Errorf("only %d files were tried", tried)
	}
}

// newToken gives the machine a bootstrap token that nobody has used.
func (m *machine) newToken() {
	s := m.s
	token := s.house.token(s.house.org, m.name, s.house.hostKeys[m.name], time.Now().Truncate(time.Second))
	text, err := pki.Marshal(token)
	s.must(err)
	s.write(filepath.Join(m.name, "token"), text)
	s.house.list(token)
}

// With a bit turned over anywhere in its only certificate, a host that has a token enrols again by itself, long before
// the certificate ends.
func TestOneBitOfTheOnlyCertificate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		newScene(t, dir, func(s *scene) {
			m := s.machine("a")
			file := s.path("a", "cert", "agent.pem")
			const places = 24
			for i := range places {
				m.halt()
				m.newToken()
				s.must(os.RemoveAll(file + ".previous"))
				s.must(os.RemoveAll(file + ".next"))
				text, err := os.ReadFile(file)
				s.must(err)
				block, _ := pem.Decode(text)
				at := i * len(block.Bytes) / places
				if i == places-1 {
					at = len(block.Bytes) - 1 // of the signature
				}
				block.Bytes[at] ^= 1 << (i % 8)
				s.must(os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
				m.life.Lock()
				m.start()
				m.life.Unlock()
				s.eventually(fmt.Sprintf("the certificate is another after a bit of byte %d", at), time.Hour, func() bool {
					now, err := os.ReadFile(file)
					if err != nil {
						return false
					}
					got, _ := pem.Decode(now)
					return got != nil && string(got.Bytes) != string(block.Bytes)
				})
				s.recovers()
			}
		})
	})
}
