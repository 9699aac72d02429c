package operator

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"nixfleet/roles/command"
)

// largeRelease writes the declaration and the closures of n hosts on one channel in three waves, and a key.
func largeRelease(b *testing.B, dir string, n int) {
	b.Helper()
	hosts, closures, waves := map[string]any{}, map[string]string{}, make([]map[string]any, 3)
	for i := range waves {
		waves[i] = map[string]any{"soakMinutes": 10, "hosts": []string{}}
	}
	for i := range n {
		name := fmt.Sprintf("node-%06d", i)
		hosts[name] = map[string]any{"system": "x86_64-linux", "tags": []string{"web"}, "channel": "stable",
			"closureHash": nil, "pubkey": hostLine(i)}
		closures[name] = fmt.Sprintf("/nix/store/%026d%06d-nixos-system-%s-25.11", 0, i, name)
		waves[i%3]["hosts"] = append(waves[i%3]["hosts"].([]string), name)
	}
	declared := map[string]any{
		"schemaVersion": 1, "hosts": hosts, "edges": []any{}, "channelEdges": []any{}, "disruptionBudgets": []any{},
		"channels": map[string]any{"stable": map[string]any{
			"rolloutPolicy": "staged", "reconcileIntervalMinutes": 30, "freshnessWindow": 1440, "signingIntervalMinutes": 60,
			"compliance": map[string]any{"frameworks": []string{}, "mode": "disabled"},
		}},
		"rolloutPolicies": map[string]any{"staged": map[string]any{
			"strategy": "staged", "healthGate": map[string]any{}, "onHealthFailure": "halt", "waves": []any{},
		}},
		"waves": map[string]any{"stable": waves}, "meta": map[string]any{"schemaVersion": 1, "signedAt": nil,
			"ciCommit": nil},
	}
	for name, v := range map[string]any{"fleet.json": declared, "closures.json": closures} {
		data, err := json.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	operate(b, "keygen", "release", "--out", filepath.Join(dir, "release.key"))
}

// hostLine is the public half of an ssh host key.
func hostLine(i int) string {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(i))
	wire := []byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20")
	wire = append(wire, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)...)
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(wire)
}

// operate runs a command of the operator's.
func operate(b *testing.B, args ...string) {
	b.Helper()
	app := command.App("test", Commands(Roles{}, nil)...)
	app.Writer, app.ErrWriter = io.Discard, io.Discard
	if code := command.Run(context.Background(), app, append([]string{"nixfleet"}, args...)); code != 0 {
		b.Fatalf("nixfleet %q: exit %d", args, code)
	}
}

// BenchmarkRelease10000 stamps, signs, verifies and writes a release of 10,000 hosts that are built already, and the
// next one, which compares itself with it. It reports processor time.
func BenchmarkRelease10000(b *testing.B) {
	dir := b.TempDir()
	largeRelease(b, dir, 10_000)
	at := func(name string) string { return filepath.Join(dir, name) }
	args := []string{"release", "--fleet-file", at("fleet.json"), "--closures", at("closures.json"), "--sign-key",
		at("release.key"), "--json"}
	measure := func(b *testing.B, args func() []string) {
		before := processor(b)
		for b.Loop() {
			operate(b, args()...)
		}
		b.ReportMetric((processor(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
	}
	b.Run("first", func(b *testing.B) {
		measure(b, func() []string { return append(slices.Clone(args), "--release-dir", b.TempDir()) })
	})
	b.Run("again", func(b *testing.B) {
		again := append(slices.Clone(args), "--release-dir", b.TempDir())
		operate(b, again...)
		measure(b, func() []string { return again })
	})
}

// processor is the processor time that this process has taken.
func processor(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
