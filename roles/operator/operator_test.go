package operator

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

func testApp(t *testing.T) *cli.App {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	app := command.App("test", Commands(Roles{}, nil)...)
	app.Writer, app.ErrWriter = new(bytes.Buffer), new(bytes.Buffer)
	return app
}

func TestArrangeLetsFlagsFollowWords(t *testing.T) {
	app := testApp(t)
	for _, c := range []struct{ in, want string }{
		{"nixfleet rollout trace ID --json", "nixfleet rollout trace --json -- ID"},
		{"nixfleet rollout trace ID --cp-url https://x --json", "nixfleet rollout trace --cp-url https://x --json -- ID"},
		{"nixfleet rollout trace --cp-url=https://x ID", "nixfleet rollout trace --cp-url=https://x -- ID"},
		{"nixfleet revoke -- --odd-name", "nixfleet revoke -- --odd-name"},
		{"nixfleet mint-token --host-pubkey - --hostname a", "nixfleet mint-token --host-pubkey - --hostname a"},
		{"nixfleet derive-pubkey - --json", "nixfleet derive-pubkey --json -- -"},
		{"nixfleet release --smoke-verify true --dry-run", "nixfleet release --smoke-verify true --dry-run"},
		{"nixfleet unknown --json x", "nixfleet unknown --json x"},
		{"nixfleet --help", "nixfleet --help"},
		{"nixfleet status --cp-url", "nixfleet status --cp-url"},
		{"nixfleet", "nixfleet"},
	} {
		if got := strings.Join(command.Arrange(app, strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzArrangeKeepsEveryWord(f *testing.F) {
	f.Add("rollout trace ID --json")
	f.Add("revoke -- -x --reason --json")
	f.Add("status --cp-url")
	app := command.App("test", Commands(Roles{}, nil)...)
	f.Fuzz(func(t *testing.T, line string) {
		in := append([]string{"nixfleet"}, strings.Fields(line)...)
		count := func(words []string) map[string]int {
			n := map[string]int{}
			for _, w := range words {
				if w != "--" {
					n[w]++
				}
			}
			return n
		}
		had, got := count(in), count(command.Arrange(app, in))
		for w, n := range had {
			if got[w] != n {
				t.Fatalf("%q: word %q occurs %d times, then %d", line, w, n, got[w])
			}
		}
	})
}

// A control plane that does not answer at all is not an interrupt: net's timeout says
// that it is a context.DeadlineExceeded.
func TestSilentControlPlaneHasAHint(t *testing.T) {
	for _, c := range []struct {
		err  error
		hint string
	}{
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, "is the control plane up"},
		{context.DeadlineExceeded, "is the control plane up"},
		{context.Canceled, ""},
		{&client.Error{Status: 401}, "the certificate is not accepted"},
		{&client.Error{Status: 409, Hint: "its own"}, "its own"},
	} {
		if got := command.HintOf(explained(c.err, "ask")); !strings.HasPrefix(got, c.hint) || (c.hint == "") != (got == "") {
			t.Errorf("%v: hint %q, want %q", c.err, got, c.hint)
		}
	}
}

func TestWriteNewNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var wg sync.WaitGroup
	var made, refused sync.Map
	for i := range 8 {
		wg.Go(func() {
			if err := writeNew(path, []byte(fmt.Sprint(i)), 0o600, false); err == nil {
				made.Store(i, true)
			} else {
				refused.Store(i, err)
			}
		})
	}
	wg.Wait()
	winners := 0
	made.Range(func(any, any) bool { winners++; return true })
	if winners != 1 {
		t.Fatalf("%d of 8 concurrent writers won", winners)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
}

func TestNixStringsHoldAnything(t *testing.T) {
	for in, want := range map[string]string{
		`plain`: `"plain"`, `a"b`: `"a\"b"`, `a\b`: `"a\\b"`, "${x}": `"\${x}"`, "a\nb": `"a\nb"`,
	} {
		if got := nixString(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{"web-01": "web-01", "01-web": `"01-web"`, "a.b": `"a.b"`, "in": `"in"`} {
		if got := nixAttribute(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestTokensAreBackdatedAndExpire(t *testing.T) {
	org, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	token, err := newToken(org, "web-01", "bI+GB9vocHemKimQzgfZSq90nfdvh7mOt4am0Q8DB2U=", 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := token.Claims.IssuedAt.String() + " " +
		token.Claims.ExpiresAt.String(); got != "2026-03-01T11:59:00Z 2026-03-02T12:00:00Z" {
		t.Errorf("validity %s", got)
	}
	public := org.Public()
	slot := &pki.KeySlot{Current: &public}
	for _, c := range []struct {
		at   time.Time
		fine bool
	}{{now.Add(-59 * time.Second), true}, {now.Add(-61 * time.Second), false}, {now.Add(23 * time.Hour),
		true}, {now.Add(24 * time.Hour), false}} {
		if err := token.Verify(slot, c.at); (err == nil) != c.fine {
			t.Errorf("at %s: %v", c.at, err)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add("cp_url = \"https://x\"\n")
	f.Add("a = [1]\n")
	f.Add("[table]\nx = 1\n")
	f.Add("d = 2026-03-01")
	path := filepath.Join(f.TempDir(), "config.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		values, err := readConfig(path, true)
		if err != nil && values != nil {
			t.Fatalf("values %v beside error %v", values, err)
		}
	})
}

// A flag that two commands share would read the variable of one of them in both.
func TestFlagsBelongToOneCommand(t *testing.T) {
	owner := map[cli.Flag]string{}
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			for _, f := range c.Flags {
				if other := owner[f]; other != "" {
					t.Errorf("--%s of %s is that of %s", f.Names()[0], path+c.Name, other)
				}
				owner[f] = path + c.Name
			}
			walk(path+c.Name+" ", c.Subcommands)
		}
	}
	walk("", Commands(Roles{}, nil))
}
