package agent

import (
	"context"
	"sync"
	"sync/atomic"
)

// work is the one activation that may run beside the check-ins.
type work struct {
	busy    atomic.Bool
	group   sync.WaitGroup
	changed chan struct{} // something local that the control plane should hear of
}

func newWork() *work { return &work{changed: make(chan struct{}, 1)} }

// start runs one activation beside the check-ins.
func (w *work) start(ctx context.Context, run func(context.Context)) {
	w.busy.Store(true)
	w.group.Go(func() {
		defer w.tellChange()
		defer w.busy.Store(false)
		run(ctx)
	})
}

// tellChange gives a held check-in up and sends a new one.
func (w *work) tellChange() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}
