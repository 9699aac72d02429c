//go:debug tlsmlkem=0

package sim

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// TestMain keeps the machines in memory where it can. Key exchanges are the
// classical ones (tlsmlkem=0), which cost half.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		// A deadline that nobody claimed runs this executable, which is not an agent here.
		os.Exit(1)
	}
	debug.SetGCPercent(400)
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}

// hostDays is the virtual time of all hosts of all runs, in seconds.
var hostDays atomic.Int64

// run plays a scenario in a bubble of its own.
func run(t *testing.T, s *scenario, trace io.Writer) (broken []violation) {
	t.Helper()
	broken, _ = play(t, s, trace)
	return broken
}

// play is run, and what the log of events came to.
func play(t *testing.T, s *scenario, trace io.Writer) (broken []violation, fingerprint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	synctest.Test(t, func(*testing.T) {
		w := newWorld(s, dir, trace)
		w.play()
		broken, fingerprint = w.violations, w.fingerprint()
		hostDays.Add(int64(time.Since(w.began)/time.Second) * int64(s.hosts))
	})
	return broken, fingerprint
}

// reduce looks for a smaller scenario that breaks the same promise, within so
// many runs.
func reduce(t *testing.T, s *scenario, invariant string, runs int) *scenario {
	for {
		found := false
		for _, c := range s.smaller() {
			if runs--; runs < 0 {
				return s
			}
			if got := run(t, c, nil); len(got) > 0 && got[0].invariant == invariant {
				s, found = c, true
				break
			}
		}
		if !found {
			return s
		}
	}
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// TestSeeds plays seeds one after another on every core. NIXFLEET_SIM_SEED plays
// one alone, with all logs; NIXFLEET_SIM_SEEDS says how many, NIXFLEET_SIM_FIRST
// from which on.
func TestSeeds(t *testing.T) {
	if os.Getenv("NIXFLEET_SIM_SEED") != "" {
		s := draw(number(t, "NIXFLEET_SIM_SEED", 0))
		t.Logf("%s", s)
		for _, v := range run(t, s, os.Stderr) {
			t.Error(v)
		}
		return
	}
	first, count := number(t, "NIXFLEET_SIM_FIRST", 1), number(t, "NIXFLEET_SIM_SEEDS", 24)
	var next atomic.Uint64
	var failed sync.Map
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for n := next.Add(1) - 1; n < count; n = next.Add(1) - 1 {
				s := draw(first + n)
				if os.Getenv("NIXFLEET_SIM_VERBOSE") != "" {
					fmt.Printf("seed %d, %d hosts\n", s.seed, s.hosts)
				}
				if got := run(t, s, nil); len(got) > 0 {
					fmt.Printf("seed %d: %s\n", s.seed, got[0])
					failed.Store(s.seed, got)
				}
			}
		})
	}
	workers.Wait()
	reduced := 0
	failed.Range(func(seed, got any) bool {
		s, broken := draw(seed.(uint64)), got.([]violation)
		if reduced++; reduced <= 3 {
			s = reduce(t, s, broken[0].invariant, 40)
		}
		t.Errorf("%s\n%sreplay: NIXFLEET_SIM_SEED=%d go test ./roles/sim -run TestSeeds", broken[0], s, s.seed)
		return true
	})
	days := float64(hostDays.Load()) / 86400
	fmt.Printf("simulated %d seeds: %.1f virtual host-days\n", count, days)
}

// TestReplays plays a seed again and again, and wants the same log of events,
// to the millisecond, each time. NIXFLEET_SIM_REPLAYS says how often.
func TestReplays(t *testing.T) {
	times := number(t, "NIXFLEET_SIM_REPLAYS", 4)
	for _, seed := range []uint64{1, 4, 6} {
		logs := map[string]int{}
		for range times {
			broken, fingerprint := play(t, draw(seed), nil)
			for _, v := range broken {
				t.Error(v)
			}
			logs[fingerprint]++
		}
		if len(logs) != 1 {
			t.Errorf("seed %d, played %d times, wrote %d different logs of events: %v", seed, times, len(logs), logs)
		}
	}
}
