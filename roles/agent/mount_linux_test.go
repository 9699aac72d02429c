package agent

import "syscall"

// mountState puts the state directory on a file system of its own.
func (m *machine) mountState(options string) {
	m.t.Helper()
	m.stateDirectory()
	if err := syscall.Mount("tmpfs", m.path("state"), "tmpfs", 0, options); err != nil {
		m.t.Skipf("no file system can be mounted here: %v", err)
	}
	m.t.Cleanup(func() { syscall.Unmount(m.path("state"), syscall.MNT_DETACH) })
}

func (m *machine) remountState(options string) {
	m.t.Helper()
	m.must(syscall.Mount("", m.path("state"), "", syscall.MS_REMOUNT, options))
}
