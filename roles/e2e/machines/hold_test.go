package machines

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// agentState is the agent's state directory on every machine.
const agentState = "/var/lib/nixfleet-agent"

// A hold stops a machine at one step of its journal, however short that is. The agent
// writes whatever it writes through a temporary file beside the old one. The kernel asks
// the hold about each file that is opened there, and while the step is on disk no new
// one is opened: the journal cannot go on. Nothing about the agent is changed for it,
// and no clock decides.
type hold struct {
	m    *machine
	step string
	file *os.File // of fanotify

	reached, let chan struct{}
	reach, leave sync.Once
}

// hold stops the machine when it comes to the step; to be asked for before the release.
func (p *play) hold(step string) *hold {
	p.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		p.Skipf("this kernel does not let us hold a machine at a step of its journal: %v", err)
	}
	must(p, err)
	h := &hold{m: p.m, step: step, file: os.NewFile(uintptr(fd), "fanotify"), reached: make(chan struct{}),
		let: make(chan struct{})}
	p.Cleanup(h.release)
	must(p, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD,
		p.m.path(agentState)))
	go h.watch()
	return h
}

func (h *hold) watch() {
	buffer := make([]byte, 4096)
	for {
		n, err := h.file.Read(buffer)
		if err != nil {
			return // released, which answers what is still open
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var e unix.FanotifyEventMetadata
			if err := binary.Read(bytes.NewReader(rest), binary.NativeEndian, &e); err != nil {
				return
			}
			rest = rest[e.Event_len:]
			// Not here: to look at the journal opens it, which is asked about, too.
			go h.answer(e.Fd)
		}
	}
}

func (h *hold) answer(fd int32) {
	defer unix.Close(int(fd))
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if strings.HasPrefix(filepath.Base(name), ".tmp-") && h.m.step() == h.step {
		h.reach.Do(func() { close(h.reached) })
		<-h.let
	}
	reply, err := binary.Append(nil, binary.NativeEndian, unix.FanotifyResponse{Fd: fd, Response: unix.FAN_ALLOW})
	if err == nil {
		h.file.Write(reply) // after the release there is nobody to tell
	}
}

// wait returns when the machine stands at the step.
func (h *hold) wait(t testing.TB) {
	t.Helper()
	select {
	case <-h.reached:
	case <-time.After(patience):
		t.Fatalf("%s never came to %s; it is at %q", h.m.name, h.step, h.m.step())
	}
}

// release lets the machine go on.
func (h *hold) release() {
	h.leave.Do(func() {
		close(h.let)
		h.file.Close()
	})
}
