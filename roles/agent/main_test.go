//go:debug tlsmlkem=0

package agent

import (
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

// TestMain keeps the machines in memory where it can: every step of a journal
// is flushed, and there are thousands of steps. Key exchanges are the classical ones
// (tlsmlkem=0), which cost half.
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

// bubble runs a test in virtual time, beside other tests. One that needs more than one bubble runs beside none.
func bubble(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, run)
}
