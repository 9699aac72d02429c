package undo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

const (
	previous = "00000000000000000000000000000000-nixos-system-web-01-0"
	unproven = "11111111111111111111111111111111-nixos-system-web-01-1"
	window   = 5 * time.Minute
)

// box is a machine in the middle of an activation: an unproven closure runs and its deadline
// is armed. No agent runs.
type box struct {
	*testing.T
	host *sim.Host
	dir  journal.Directory
	j    *journal.Journal
	runs atomic.Int32 // of the previous closure's script
}

// newBox makes a box whose state directory is at the path.
func newBox(t *testing.T, state string) *box {
	t.Helper()
	root := t.TempDir()
	must(t, os.MkdirAll(root+"/cache", 0o700))
	for _, name := range []string{previous, unproven} {
		must(t, sim.WriteClosure(root+"/cache", name, sim.Closure{Agent: "self", Cache: sim.Cache{Size: 1}}))
	}
	host, err := sim.New(root+"/machine", root+"/cache")
	must(t, err)
	t.Cleanup(host.Close)
	must(t, host.Install(previous))
	must(t, host.Realise(t.Context(), unproven, nil))
	boot, err := host.BootID(t.Context())
	must(t, err)
	dir, err := journal.Open(state)
	must(t, err)
	b := &box{T: t, host: host, dir: dir, j: &journal.Journal{
		Step: journal.Arming, Closure: unproven, BootID: boot, WindowSecs: uint32(window / time.Second),
		Before:    journal.Recorded{Current: previous, Profile: previous, BootDefault: previous},
		StartedAt: pki.At(time.Now().Truncate(time.Millisecond)), Since: pki.At(time.Now().Truncate(time.Millisecond)),
		Units: journal.NewUnits("tag"), FailedBefore: []string{}, Restarts: map[string]uint64{},
	}}
	host.OnDeadline(func(d nixops.Deadline) {
		if err := b.undoer().Insist(t.Context(), d.Unit); err != nil {
			t.Logf("deadline: %v", err)
		}
	})
	must(t, dir.Begin(b.j))
	must(t, b.undoer().Arm(t.Context(), b.j))
	b.j, err = dir.Advance(time.Now(), []journal.Step{journal.Arming}, journal.Switching, nil)
	must(t, err)
	exit, err := host.Switch(t.Context(),
		nixops.SwitchRequest{Closure: unproven, Action: nixops.ActionTest, Unit: b.j.Units.Switch})
	must(t, err)
	if !exit.OK() {
		t.Fatal(exit)
	}
	return b
}

// undoer is that of a process of its own.
func (b *box) undoer() *Undoer {
	return &Undoer{Host: counted{b.host, b}, Dir: b.dir, Log: zerolog.Nop()}
}

// counted counts in its box how often the previous closure's script runs.
type counted struct {
	*sim.Host
	box *box
}

func (c counted) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	c.box.runs.Add(1)
	return c.Host.Switch(ctx, r)
}

// back fails unless everything is where it was.
func (b *box) back() {
	b.Helper()
	for what, read := range map[string]func(context.Context) (string, error){
		"current system": b.host.CurrentSystem, "profile": b.host.Profile, "boot default": b.host.BootDefault,
	} {
		if got, err := read(b.Context()); err != nil || got != previous {
			b.Errorf("%s is %s, %v", what, got, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mounted is an empty file system of its own.
func mounted(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		for syscall.Unmount(dir, syscall.MNT_DETACH) == nil { // what lies over it, too
		}
	})
	return dir
}

// takenAway is what a release may do to the state directory.
var takenAway = map[string]func(t *testing.T, dir journal.Directory){
	"read-only": func(t *testing.T, dir journal.Directory) {
		must(t, syscall.Mount("", string(dir), "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	},
	"full": func(t *testing.T, dir journal.Directory) {
		for name := range map[string]bool{"filler": true, "reserve/filler": true} {
			f, err := os.Create(dir.Path(name))
			must(t, err)
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			must(t, f.Close())
		}
	},
	"no more files": func(t *testing.T, dir journal.Directory) {
		for i := 0; ; i++ {
			if os.WriteFile(dir.Path(fmt.Sprint("filler-", i)), nil, 0o600) != nil {
				return
			}
		}
	},
	"gone": func(t *testing.T, dir journal.Directory) { must(t, syscall.Unmount(string(dir), syscall.MNT_DETACH)) },
	"hidden": func(t *testing.T, dir journal.Directory) {
		must(t, syscall.Mount("tmpfs", string(dir), "tmpfs", 0, "mode=700"))
	},
	"journal removed": func(t *testing.T, dir journal.Directory) {
		must(t, os.Remove(dir.Path(journal.File)))
	},
	"journal halved": func(t *testing.T, dir journal.Directory) {
		doc, err := os.ReadFile(dir.Path(journal.File))
		must(t, err)
		must(t, os.WriteFile(dir.Path(journal.File), doc[:len(doc)/2], 0o600))
	},
	"journal a pipe": func(t *testing.T, dir journal.Directory) {
		must(t, os.Remove(dir.Path(journal.File)))
		must(t, syscall.Mkfifo(dir.Path(journal.File), 0o600))
	},
	"journal a directory": func(t *testing.T, dir journal.Directory) {
		must(t, os.Remove(dir.Path(journal.File)))
		must(t, os.Mkdir(dir.Path(journal.File), 0o700))
	},
	"journal a device": func(t *testing.T, dir journal.Directory) {
		must(t, os.Remove(dir.Path(journal.File)))
		must(t, os.Symlink("/dev/zero", dir.Path(journal.File)))
	},
	"lock a directory": func(t *testing.T, dir journal.Directory) {
		must(t, os.Remove(dir.Path("journal.lock")))
		must(t, os.Mkdir(dir.Path("journal.lock"), 0o700))
	},
}

// Whatever a release does to the state directory, its deadline brings the host back on time.
func TestDeadlineNeedsNoStateDirectory(t *testing.T) {
	for name, take := range takenAway {
		t.Run(name, func(t *testing.T) {
			dir := mounted(t, "mode=700,size=2m,nr_inodes=200")
			synctest.Test(t, func(t *testing.T) {
				b := newBox(t, dir)
				take(t, b.dir)
				time.Sleep(window + time.Minute)
				b.back()
			})
		})
	}
}

// Root's undo goes by the note of the deadline as well.
func TestUndoByTheNewestNote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, filepath.Join(t.TempDir(), "state"))
		must(t, os.RemoveAll(string(b.dir)))
		must(t, b.undoer().FromNoted(t.Context(), Newest, journal.Revertible, Interrupted))
		b.back()
		if note, err := b.host.DeadlineNote(t.Context(), ""); err != nil || note != nil {
			t.Errorf("a note is left: %q, %v", note, err)
		}
	})
}

// The reserve is what a full disk's undo is written down with.
func TestUndoOnAFullDiskIsWrittenDown(t *testing.T) {
	dir := mounted(t, "mode=700,size=2m,nr_inodes=200")
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, dir)
		takenAway["full"](t, b.dir)
		time.Sleep(window + time.Minute)
		b.back()
		if j, err := b.dir.Journal(); err != nil || j == nil || j.Step != journal.Undone {
			t.Errorf("journal %+v, %v", j, err)
		}
	})
}

// What could not be written down is written when the disk can be written again; the script
// of the previous closure is not run for that.
func TestUndoIsWrittenDownLater(t *testing.T) {
	dir := mounted(t, "mode=700,size=2m")
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, dir)
		takenAway["read-only"](t, b.dir)
		time.Sleep(window + 10*time.Minute)
		b.back()
		if j, err := b.dir.Journal(); err != nil || j.Step != journal.Switching {
			t.Fatalf("journal %+v, %v", j, err)
		}
		runs := b.runs.Load()
		must(t, syscall.Mount("", string(b.dir), "", syscall.MS_REMOUNT, ""))
		time.Sleep(2 * Again)
		if j, err := b.dir.Journal(); err != nil || j.Step != journal.Undone {
			t.Errorf("journal %+v, %v", j, err)
		}
		if more := b.runs.Load(); runs != 1 || more != 1 {
			t.Errorf("the previous script ran %d times, then %d", runs, more)
		}
	})
}

// A closure that has become the profile is proven: a note that was left over undoes nothing.
func TestNoteOfAProvenClosureIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, filepath.Join(t.TempDir(), "state"))
		must(t, b.host.SetProfile(t.Context(), unproven))
		must(t, b.dir.Remove(journal.File))
		time.Sleep(window + time.Minute)
		if current, err := b.host.CurrentSystem(t.Context()); err != nil || current != unproven {
			t.Errorf("%s runs, %v", current, err)
		}
	})
}
