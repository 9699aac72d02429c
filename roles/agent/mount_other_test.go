//go:build !linux

package agent

func (m *machine) mountState(string) {
	m.t.Helper()
	m.t.Skip("file systems are mounted on Linux only")
}

func (m *machine) remountState(string) {}
