package cp

import (
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
)

func TestSystemdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "100000")
	t.Setenv("WATCHDOG_PID", "")
	p := serialEstate(t, "a").serve()
	told := func() string {
		t.Helper()
		buf := make([]byte, 100)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	first := []string{told(), told()}
	if !slices.Equal(first, []string{"READY=1", "WATCHDOG=1"}) {
		t.Errorf("told %v", first)
	}
	p.stop()
	for last := ""; last != "STOPPING=1"; {
		last = told()
	}
}

func TestHistoryIsBoundedByTimeAndSize(t *testing.T) {
	now := time.Now()
	release := func(id string, signed time.Time, size int) *fleet.Release {
		return &fleet.Release{
			SignedAt: signed, Fleet: &fleet.Fleet{Channels: map[string]fleet.Channel{"stable": {FreshnessWindow: 60}}},
			Channels: map[string]*fleet.ChannelRelease{
				"stable": {RolloutID: id, ManifestFile: fleet.Artifact{Body: make([]byte, size)}}},
		}
	}
	h := newHistory()
	known := func(id string) bool { _, ok := h.find(id); return ok }
	h.add(release("old", now.Add(-2*time.Hour), 1), now.Add(-2*time.Hour))
	h.add(release("first", now.Add(-time.Minute), maxHistory/2), now)
	if known("old") || !known("first") {
		t.Errorf("old %v first %v", known("old"), known("first"))
	}
	h.add(release("second", now, maxHistory/2), now)
	h.add(release("third", now.Add(time.Second), 1), now)
	if known("first") || !known("second") || !known("third") || h.size != maxHistory/2+1 {
		t.Errorf("first %v second %v third %v, %d bytes", known("first"), known("second"), known("third"), h.size)
	}
}

func FuzzPreferredWait(f *testing.F) {
	for _, seed := range []string{"wait=10", "respond-async; x, wait = \"7\"", "wait=-1", ",;=="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if got := preferredWait([]string{header}); got < 0 || got > maxWait || got%time.Second != 0 {
			t.Errorf("%q: %s", header, got)
		}
	})
}
