package release

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitingSaysWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newNarrator(&out, false)
		builds := &buildProgress{}
		stop := r.waiting("building web-01", builds.String)
		hears := func(lines ...string) {
			time.Sleep(waitingEvery)
			synctest.Wait()
			for _, line := range lines {
				builds.heard(line)
			}
		}
		hears("these 12 derivations will be built:", "  /nix/store/0000-linux-6.12.drv",
			"building '/nix/store/1111-glibc-2.40.drv'...", "building '/nix/store/0000-linux-6.12.drv'...")
		hears("copying path '/nix/store/2222-firmware' from 'https://cache.example.com'...")
		hears()
		stop()
		time.Sleep(time.Hour)
		want := "building web-01 for 30s: evaluating\n" +
			"building web-01 for 1m0s: linux-6.12 (2 of 12 derivations)\n" +
			"building web-01 for 1m30s: fetching firmware (1 path so far)\n"
		if out.String() != want {
			t.Errorf("said\n%swant\n%s", &out, want)
		}
	})
}

// TestWarningsAreSaidOnce listens to two builds of one flake.
func TestWarningsAreSaidOnce(t *testing.T) {
	h := newNarrator(io.Discard, false)
	var said []string
	for _, lines := range [][]string{
		{"evaluation warning: one", "                    more of it", "building '/nix/store/0-a.drv'...", "  indented"},
		{"evaluation warning: one", "                    more of it", "                    another end",
			"trace: seen", "building '/nix/store/0-a.drv'...", "  indented"},
	} {
		news := h.listener()
		for _, line := range lines {
			if news(line) {
				said = append(said, strings.TrimSpace(line))
			}
		}
	}
	want := "evaluation warning: one|more of it|building '/nix/store/0-a.drv'...|indented|" +
		"another end|trace: seen|building '/nix/store/0-a.drv'...|indented"
	if got := strings.Join(said, "|"); got != want {
		t.Errorf("said %s\nwant %s", got, want)
	}
}
