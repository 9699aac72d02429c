package command

import (
	"syscall"
	"testing"
)

// Without Hangups the signal would end this process.
func TestAHangupEndsNothing(t *testing.T) {
	received, stop := Hangups()
	defer stop()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := <-received; got != syscall.SIGHUP {
		t.Errorf("received %v", got)
	}
}
