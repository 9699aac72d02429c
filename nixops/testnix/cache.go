package testnix

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Cache is a binary cache in a directory, served over http on loopback.
type Cache struct {
	Dir string
	URL string

	nix    Nix
	server *httptest.Server

	mu       sync.Mutex
	hook     func(http.ResponseWriter, *http.Request) bool
	requests []string // each "METHOD PATH"
	uploads  uploads
}

// uploads says what a cache does with PUT, by which nix copy fills it over http.
type uploads int

const (
	noUploads   uploads = iota
	anyUpload           // every file
	firstUpload         // only a file that the cache does not have yet
)

// TakeUploads lets nix copy fill the cache by its URL. If replace is false, the cache refuses to change a file.
func (c *Cache) TakeUploads(replace bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uploads = firstUpload
	if replace {
		c.uploads = anyUpload
	}
}

// upload writes the file of a PUT.
func (c *Cache) upload(w http.ResponseWriter, r *http.Request, how uploads) {
	file := filepath.Join(c.Dir, filepath.FromSlash(r.URL.Path))
	if _, err := os.Stat(file); how == noUploads || how == firstUpload && err == nil {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o755)
	}
	if err == nil {
		err = os.WriteFile(file, body, 0o644)
	}
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// Empty removes everything from the cache.
func (c *Cache) Empty(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "nix-cache-info" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(c.Dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// NewCache serves an empty cache until the test ends.
func (n Nix) NewCache(t testing.TB) *Cache {
	t.Helper()
	c := &Cache{Dir: t.TempDir(), nix: n}
	info := []byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n")
	if err := os.WriteFile(filepath.Join(c.Dir, "nix-cache-info"), info, 0o644); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(c.Dir))
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests = append(c.requests, r.Method+" "+r.URL.Path)
		hook, uploads := c.hook, c.uploads
		c.mu.Unlock()
		switch {
		case hook != nil && hook(w, r):
		case r.Method == http.MethodPut:
			c.upload(w, r, uploads)
		default:
			files.ServeHTTP(w, r)
		}
	}))
	c.URL = c.server.URL
	t.Cleanup(c.Stop)
	return c
}

// Stop makes the cache unreachable.
func (c *Cache) Stop() {
	c.server.CloseClientConnections()
	c.server.Close()
}

// Hook sets a function that gets each request first and says whether it answered; nil removes the function.
func (c *Cache) Hook(f func(http.ResponseWriter, *http.Request) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = f
}

// Requests returns the paths of the requests so far.
func (c *Cache) Requests() []string {
	lines := c.RequestLines()
	for i, line := range lines {
		_, lines[i], _ = strings.Cut(line, " ")
	}
	return lines
}

// RequestLines returns the requests so far, each as METHOD PATH.
func (c *Cache) RequestLines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.requests...)
}

// Push copies closures from a store into the cache and signs each path with the key. A zero key signs nothing.
func (c *Cache) Push(t testing.TB, s *Store, key Key, closures ...string) {
	t.Helper()
	dest := "file://" + c.Dir + "?compression=none"
	if key.SecretFile != "" {
		dest += "&secret-key=" + key.SecretFile
	}
	args := []string{"copy", "--store", s.Dir, "--to", dest}
	for _, closure := range closures {
		args = append(args, "/nix/store/"+closure)
	}
	c.nix.Run(t, "nix", args...)
}

func (c *Cache) narinfo(closure string) string {
	return filepath.Join(c.Dir, closure[:32]+".narinfo")
}

// EditNarinfo changes what the cache says about a path.
func (c *Cache) EditNarinfo(t testing.TB, closure string, edit func(string) string) {
	t.Helper()
	text, err := os.ReadFile(c.narinfo(closure))
	if err == nil {
		err = os.WriteFile(c.narinfo(closure), []byte(edit(string(text))), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// DropSignatures makes a path unsigned.
func (c *Cache) DropSignatures(t testing.TB, closure string) {
	c.EditNarinfo(t, closure, func(text string) string {
		var kept strings.Builder
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "Sig:") {
				kept.WriteString(line)
			}
		}
		return kept.String()
	})
}

// NAR returns the name of the file with a path's content.
func (c *Cache) NAR(t testing.TB, closure string) string {
	t.Helper()
	text, err := os.ReadFile(c.narinfo(closure))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if url, ok := strings.CutPrefix(line, "URL: "); ok {
			return filepath.Join(c.Dir, strings.TrimSpace(url))
		}
	}
	t.Fatalf("narinfo of %s has no URL", closure)
	return ""
}

// EditNAR changes a path's content and leaves its signature as it is.
func (c *Cache) EditNAR(t testing.TB, closure string, edit func([]byte) []byte) {
	t.Helper()
	file := c.NAR(t, closure)
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, edit(data), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Corrupt changes one byte of a path's content that is not NAR syntax. The archive can still be unpacked, and only its
// hash is wrong.
func (c *Cache) Corrupt(t testing.TB, closure string) {
	c.EditNAR(t, closure, func(data []byte) []byte {
		at := strings.Index(string(data), marker)
		if at < 0 {
			t.Fatalf("%s was not built by this package", closure)
		}
		data[at] ^= 1
		return data
	})
}

// Swap makes the cache serve another path's content for a path.
func (c *Cache) Swap(t testing.TB, closure, other string) {
	data, err := os.ReadFile(c.NAR(t, other))
	if err != nil {
		t.Fatal(err)
	}
	c.EditNAR(t, closure, func([]byte) []byte { return data })
}
