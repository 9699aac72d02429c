package command

import (
	"os"
	"os/signal"
	"syscall"
)

// Hangups receives SIGHUP until stop is called, which also keeps the signal
// from ending the process, as it would by itself. A service that reads its
// files when they change may leave the channel alone.
func Hangups() (received <-chan os.Signal, stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups, func() { signal.Stop(hangups) }
}
