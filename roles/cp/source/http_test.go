package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// shelf is an http server of files that counts.
type shelf struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	etags    bool
	token    string
	answered map[int]int // by status
	after    func(name string)
}

func newShelf(t *testing.T, files map[string][]byte) *shelf {
	s := &shelf{files: files, etags: true, answered: map[int]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(r.URL.Path, "/")
	data, ok := s.files[name]
	status := http.StatusOK
	tag := `"` + pki.HashHex(data) + `"`
	switch {
	case s.token != "" && r.Header.Get("Authorization") != "Bearer "+s.token:
		status = http.StatusUnauthorized
	case !ok:
		status = http.StatusNotFound
	case s.etags && r.Header.Get("If-None-Match") == tag:
		status = http.StatusNotModified
	}
	s.answered[status]++
	if s.etags {
		w.Header().Set("ETag", tag)
	}
	w.WriteHeader(status)
	if status == http.StatusOK {
		w.Write(data)
	}
	if s.after != nil {
		s.after(name)
	}
}

func (s *shelf) pair(name string) Pair {
	return Pair{Artifact: s.URL + "/" + name, Signature: s.URL + "/" + name + fleet.SignatureSuffix}
}

func (s *shelf) config() HTTPConfig {
	return HTTPConfig{Fleet: s.pair(fleet.FleetName), Revocations: s.pair(fleet.RevocationsName),
		Nonces: s.pair(fleet.NoncesName)}
}

// counts gives the answers by status since the last call.
func (s *shelf) counts() map[int]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.answered
	s.answered = map[int]int{}
	return was
}

func (s *shelf) put(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = []byte(text)
}

func TestPairsOfURLsGiveARelease(t *testing.T) {
	files, trust := signedRelease(t)
	server := newShelf(t, files)
	s := NewHTTP(server.config())
	got := fetched(t, s, "")
	if _, err := fleet.LoadRelease(got.FS, fleet.LoadOptions{Trust: trust, Now: releasedAt, Window: time.Hour,
		RequireRevocations: true, RequireNonces: true, ManifestsElsewhere: true}); err != nil {
		t.Fatal(err)
	}
	if n := server.counts(); n[200] != 6 || n[304] != 3 {
		t.Errorf("first poll: %v", n)
	}
	fetched(t, s, got.Revision)
	if n := server.counts(); n[200] != 0 || n[304] != 6 {
		t.Errorf("idle poll: %v", n)
	}
	server.put(fleet.NoncesName+fleet.SignatureSuffix, "new")
	if next := fetched(t, s, got.Revision); next.Unchanged {
		t.Error("a list that changed alone is not seen")
	}
	// A release that was refused is offered again, although nothing is sent again.
	if again := fetched(t, s, got.Revision); again.Unchanged ||
		content(t, again.FS, fleet.NoncesName+fleet.SignatureSuffix) != "new" {
		t.Error("a refused release is not offered again")
	}
}

func TestAServerWithoutETags(t *testing.T) {
	files, _ := signedRelease(t)
	server := newShelf(t, files)
	server.etags = false
	s := NewHTTP(server.config())
	got := fetched(t, s, "")
	server.counts()
	fetched(t, s, got.Revision)
	if n := server.counts(); n[200] != 6 {
		t.Errorf("idle poll: %v", n)
	}
}

func TestOnlyTheFleetPair(t *testing.T) {
	files, _ := signedRelease(t)
	server := newShelf(t, files)
	got := fetched(t, NewHTTP(HTTPConfig{Fleet: server.pair(fleet.FleetName)}), "")
	if _, err := got.FS.Open(fleet.RevocationsName); err == nil {
		t.Error("a list that nobody named")
	}
}

// The upload comes between the document and its signature.
func TestAPairReplacedWhileItIsReadIsReadAgain(t *testing.T) {
	server := newShelf(t, map[string][]byte{fleet.FleetName: []byte("one"),
		fleet.FleetName + fleet.SignatureSuffix: []byte("one")})
	server.after = func(name string) {
		if name == fleet.FleetName { // under the lock already
			server.files[fleet.FleetName], server.files[fleet.FleetName+fleet.SignatureSuffix] = []byte("two"), []byte("two")
		}
	}
	got := fetched(t, NewHTTP(HTTPConfig{Fleet: server.pair(fleet.FleetName)}), "")
	if a, b := content(t, got.FS, fleet.FleetName),
		content(t, got.FS, fleet.FleetName+fleet.SignatureSuffix); a != "two" || b != "two" {
		t.Errorf("%s with the signature of %s", a, b)
	}
}

func TestAnUploadThatNeverEndsIsNotWaitedFor(t *testing.T) {
	server := newShelf(t, map[string][]byte{fleet.FleetName: []byte("0"),
		fleet.FleetName + fleet.SignatureSuffix: []byte("0")})
	n := 0
	server.after = func(name string) {
		n++
		server.files[fleet.FleetName] = []byte(fmt.Sprint(n))
	}
	fetched(t, NewHTTP(HTTPConfig{Fleet: server.pair(fleet.FleetName)}), "")
	if n > 3*httpAttempts {
		t.Errorf("%d requests", n)
	}
}

func TestTheTokenIsReadAtEachPoll(t *testing.T) {
	server := newShelf(t, map[string][]byte{fleet.FleetName: []byte("x"),
		fleet.FleetName + fleet.SignatureSuffix: []byte("y")})
	server.token = "first"
	p := server.pair(fleet.FleetName)
	p.TokenFile = filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(p.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := NewHTTP(HTTPConfig{Fleet: p})
	if _, err := s.Fetch(t.Context(), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token file: %v", err)
	}
	write("first")
	fetched(t, s, "")
	server.mu.Lock()
	server.token = "second"
	server.mu.Unlock()
	if _, err := s.Fetch(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "401") ||
		strings.Contains(err.Error(), "first") {
		t.Errorf("with the old token: %v", err)
	}
	write("second")
	fetched(t, s, "")
}

func TestRedirects(t *testing.T) {
	files := map[string][]byte{fleet.FleetName: []byte("x"), fleet.FleetName + fleet.SignatureSuffix: []byte("y")}
	plain := newShelf(t, files)
	hops := 0
	forge := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, strings.Replace(r.URL.Path, "/moved/", "/here/", 1), http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/loop/"):
			hops++
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/down/"):
			http.Redirect(w, r, plain.URL+strings.TrimPrefix(r.URL.Path, "/down"), http.StatusFound)
		default:
			w.Write(files[filepath.Base(r.URL.Path)])
		}
	}))
	defer forge.Close()
	get := func(dir string) error {
		s := NewHTTP(HTTPConfig{Fleet: Pair{Artifact: forge.URL + dir + fleet.FleetName,
			Signature: forge.URL + dir + fleet.FleetName + fleet.SignatureSuffix}})
		s.(*httpSource).client = forge.Client()
		_, err := s.Fetch(t.Context(), "")
		return err
	}
	if err := get("/moved/"); err != nil {
		t.Errorf("within https: %v", err)
	}
	if err := get("/down/"); err == nil || !strings.Contains(err.Error(), "https to http") {
		t.Errorf("from https to http: %v", err)
	}
	if n := plain.counts(); len(n) != 0 {
		t.Errorf("the plain server was asked: %v", n)
	}
	if err := get("/loop/"); err == nil || hops > maxRedirects+1 {
		t.Errorf("%d redirects: %v", hops, err)
	}
}

func TestAnswersThatAreNoDocument(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, c := range map[string]struct {
		http.HandlerFunc
		says string
	}{
		"no content":  {status(204), "204"},
		"partial":     {status(206), "206"},
		"unasked 304": {status(304), "304"},
		"forbidden":   {status(403), "403"},
		"broken":      {status(502), "502"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("x"))
		}, "unexpected EOF"},
		"endless":      {func(w http.ResponseWriter, _ *http.Request) { pour(w) }, pki.ErrSize.Error()},
		"hung up":      {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"nobody there": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
	} {
		server := httptest.NewServer(c.HandlerFunc)
		address := server.URL + "/fleet?private_token=hunter2"
		s := NewHTTP(HTTPConfig{Fleet: Pair{Artifact: address, Signature: address}})
		ctx, cancel := context.WithTimeout(t.Context(), FetchTimeout)
		if name == "nobody there" {
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		}
		_, err := s.Fetch(ctx, "")
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
		if _, err := s.Fetch(t.Context(), ""); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("no server: %v", err)
		}
	}
}

// pour writes more than a document may have.
func pour(w http.ResponseWriter) {
	block := bytes.Repeat([]byte(" "), 1<<20)
	for range pki.MaxDocument>>20 + 8 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func TestShownURLs(t *testing.T) {
	for address, want := range map[string]string{
		"https://forge/a?token=x#y": "https://forge/a", "https://u:p@forge/a": "https://forge/a",
		"http://a b": "an unreadable URL",
	} {
		if got := shownURL(address); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}
