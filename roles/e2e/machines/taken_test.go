package machines

import (
	"os"
	"syscall"
	"testing"
)

// Each release takes away what the way back might need. Its own agent cannot run, so that
// the deadline alone brings the host back.
func init() {
	scenarios = append(scenarios,
		scenario{"state-full", playStateFull}, scenario{"state-ro", playStateReadOnly},
		scenario{"state-hidden", playStateHidden}, scenario{"journal-pipe", playJournalPipe},
		scenario{"run-full", playRunFull}, scenario{"buses-gone", playBusesGone},
		scenario{"user-part", playUserPart},
	)
}

// breaks is a unit of the release that takes something away for as long as it runs.
func breaks(start, stop string, settings ...string) change {
	text := "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c '" +
		start + "'\nExecStop=/bin/sh -c '" + stop + "'\nEnvironment=PATH=/usr/sbin:/usr/bin:/sbin:/bin\n"
	for _, s := range settings {
		text += s + "\n"
	}
	return unit("breaks.service", text)
}

const stateDir = "/var/lib/nixfleet-agent"

// ownState puts the agent's state on a file system of its own.
func ownState(t *testing.T, options string) func(*machine) {
	return func(m *machine) {
		must(t, os.MkdirAll(m.path(stateDir), 0o700))
		must(t, syscall.Mount("tmpfs", m.path(stateDir), "tmpfs", 0, "mode=700,"+options))
		t.Cleanup(func() { syscall.Unmount(m.path(stateDir), syscall.MNT_DETACH) })
	}
}

// Something fills the state directory again and again, so that no reserve is of use.
func playStateFull(t *testing.T, g *ground) {
	volatile := option("--allow-volatile-state")
	p := newPlayOn(t, g, g.brief, "state-full", "channel-state-full", ownState(t, "size=24m"), volatile)
	p.release(p.next("next", volatile, agentOf(g.broken), unit("fills.service",
		"[Service]\nEnvironment=PATH=/usr/bin:/bin\nExecStart=/bin/sh -c 'while :; do cat /dev/zero >>"+stateDir+
			"/filler; sleep 0.05; done'\nExecStopPost=/bin/rm -f "+stateDir+"/filler\nStandardError=null\n")))
	p.back("deadline", true)
	p.tell("new generation fills the state directory and breaks the agent", onOld, "")
}

func playStateReadOnly(t *testing.T, g *ground) {
	volatile := option("--allow-volatile-state")
	p := newPlayOn(t, g, g.brief, "state-ro", "channel-state-ro", ownState(t, "size=24m"), volatile)
	p.release(p.next("next", volatile, agentOf(g.broken),
		breaks("mount -o remount,ro "+stateDir, "mount -o remount,rw "+stateDir)))
	p.back("deadline", true)
	p.tell("new generation makes the state directory read-only and breaks the agent", onOld, "")
}

// The journal lies below what was mounted, until the undo's script stops the unit that did it.
func playStateHidden(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "state-hidden")
	p.release(p.next("next", agentOf(g.broken),
		breaks("mount -t tmpfs -o mode=700 tmpfs "+stateDir, "umount -l "+stateDir)))
	p.back("deadline", true)
	p.tell("new generation mounts something over the state directory and breaks the agent", onOld, "")
}

func playJournalPipe(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "journal-pipe")
	p.release(p.next("next", agentOf(g.broken),
		breaks("rm "+stateDir+"/journal.json; mkfifo "+stateDir+"/journal.json", ":")))
	p.back("deadline", true)
	p.tell("new generation puts a pipe in the journal's place and breaks the agent", onOld, "")
}

// Without room below /run systemd makes no units and reads none again.
func playRunFull(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "run-full")
	p.m.run("mount", "-o", "remount,size=40m", "/run")
	p.release(p.next("next", agentOf(g.broken),
		breaks("cat /dev/zero >/run/filler/file || :", ":", "RuntimeDirectory=filler", "StandardError=null")))
	p.back("deadline", true)
	p.tell("new generation fills /run and breaks the agent", onOld, "")
}

func playBusesGone(t *testing.T, g *ground) {
	p := newPlay(t, g, g.brief, "buses-gone")
	const both = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service " +
		"dbus.socket dbus.service"
	// A unit that logs is ordered after journald's socket, which systemd starts only when the unit has stopped: its
	// ExecStop must not wait for that, or it would wait until its timeout of 90 s.
	p.release(p.next("next", agentOf(g.broken), breaks("systemctl stop "+both, "systemctl start --no-block "+both)))
	p.back("deadline", true)
	p.tell("new generation stops D-Bus and journald and breaks the agent", onOld, "")
}

// The part of a logged-in user would take an hour, in the switch and in its undo: it keeps
// neither from ending, and the release is not to blame for it.
func playUserPart(t *testing.T, g *ground) {
	slow := knob("user-seconds", "3600")
	p := newPlay(t, g, g.main, "user-part", slow)
	next := p.next("next", slow)
	p.release(next)
	p.confirmed(next)
	p.first = next
	p.release(p.next("bad", slow, late))
	p.back("late.service", true)
	p.tell("part of a logged-in user that does not end, in a switch and in an undo", onOld, "")
}
