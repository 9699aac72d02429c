package machines

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// machine is one host: a root of its own over the shared one, a network namespace, and
// systemd as PID 1 of a container while it is on.
type machine struct {
	t       testing.TB
	name    string
	net     *network
	binary  string // that root's own nixfleet is
	dir     string // upper, work, root
	root    string // the mounted overlay; whole host state, survives a power cut
	netns   string
	address string

	mu      sync.Mutex
	nspawn  *exec.Cmd
	leader  int
	gone    chan struct{} // closed when nspawn has ended
	boots   int
	leaving bool // the test is over: no further boot
}

func newMachine(t testing.TB, n *network, name, base, binary string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "nixfleet-machine-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	m := &machine{t: t, name: name, net: n, binary: binary, dir: dir, root: filepath.Join(dir, "root")}
	for _, sub := range []string{"upper", "work", "root"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	must(t, overlay(base, dir))
	t.Cleanup(func() {
		if err := syscall.Unmount(m.root, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", m.root, err)
		}
		syscall.Unmount(filepath.Join(m.dir, "memory"), syscall.MNT_DETACH) // if it is there
	})
	m.netns, m.address = n.wire()
	m.write("/etc/hostname", name+"\n", 0o644)
	// Without an id systemd takes it for the first boot and enables units of its own.
	m.write("/etc/machine-id", fmt.Sprintf("%032x\n", sha256.Sum256([]byte(m.dir)))[:32]+"\n", 0o444)
	must(t, os.MkdirAll(m.path("/var/log/journal"), 0o755)) // kept over boots
	t.Cleanup(func() {
		m.mu.Lock()
		m.leaving = true
		m.mu.Unlock()
		if t.Failed() {
			t.Logf("%s: the end of its journal:\n%s", name, m.journal())
		}
		m.cut()
		m.dropGroups()
	})
	return m
}

// overlay mounts dir/root over the shared one.
func overlay(base, dir string) error {
	layers := func(at string) string {
		return fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, at, at)
	}
	err := syscall.Mount("overlay", dir+"/root", "overlay", 0, layers(dir))
	if !errors.Is(err, syscall.EINVAL) {
		return err
	}
	// What this machine has itself is an overlay, as in a container, and cannot be the
	// upper layer of one.
	for _, sub := range []string{"upper", "work"} {
		if err := os.Remove(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	memory := filepath.Join(dir, "memory")
	if err := os.Mkdir(memory, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		return err
	}
	for _, sub := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(memory, sub), 0o755); err != nil {
			return err
		}
	}
	return syscall.Mount("overlay", dir+"/root", "overlay", 0, layers(memory))
}

func (m *machine) path(inside string) string { return m.root + inside }

func (m *machine) write(inside, text string, mode os.FileMode) {
	m.t.Helper()
	must(m.t, os.MkdirAll(filepath.Dir(m.path(inside)), 0o755))
	must(m.t, os.WriteFile(m.path(inside), []byte(text), mode))
}

// boot switches the machine on. Its loader and its stage 2 are the model in
// testdata/stage-2; what they start is systemd.
func (m *machine) boot() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	must(m.t, m.start())
}

func (m *machine) start() error {
	groups := m.groups()
	join := ""
	for _, g := range groups {
		if err := os.MkdirAll(g, 0o755); err != nil {
			return err
		}
		join += "echo $$ >" + g + "/cgroup.procs && "
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	// In a group of its own: systemd manages the groups below its own as if they were
	// all its machine's.
	cmd := exec.Command("/bin/sh", "-c", join+`exec "$@"`, "sh", "systemd-nspawn", "-q", "-D", m.root, "--machine="+m.name,
		"--register=no", "--keep-unit", "--link-journal=no", "--network-namespace-path=/run/netns/"+m.netns,
		"--console=read-only", "--capability=CAP_NET_ADMIN",
		"--resolv-conf=off", "--timezone=off", "--bind-ro="+m.binary+":/usr/local/bin/nixfleet", "/usr/local/sbin/stage-2")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = console, console, withUs
	if err := cmd.Start(); err != nil {
		return err
	}
	m.boots++
	gone := make(chan struct{})
	m.nspawn, m.gone = cmd, gone
	m.leader = 0
	deadline := time.Now().Add(patience)
	for m.leader == 0 {
		if m.leader = leaderOf(cmd.Process.Pid); m.leader != 0 {
			break
		}
		if time.Now().After(deadline) || syscall.Kill(cmd.Process.Pid, 0) != nil {
			return fmt.Errorf("%s does not boot:\n%s", m.name, m.console())
		}
		time.Sleep(10 * time.Millisecond)
	}
	go m.watch(cmd, gone)
	return nil
}

// withUs ends what a test started when the test itself is killed.
var withUs = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

// rebooted is the exit status of systemd-nspawn when the container asked for a reboot.
const rebooted = 133

// watch switches the machine on again after a reboot from inside.
func (m *machine) watch(cmd *exec.Cmd, gone chan struct{}) {
	cmd.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	close(gone)
	if m.nspawn != cmd {
		return
	}
	m.nspawn, m.leader = nil, 0
	if cmd.ProcessState.ExitCode() == rebooted && !m.leaving {
		if err := m.start(); err != nil {
			m.t.Error(err)
		}
	}
}

// leaderOf finds the container's PID 1 among the children of systemd-nspawn.
func leaderOf(nspawn int) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	for child := range strings.FieldsSeq(string(children)) {
		status, _ := os.ReadFile("/proc/" + child + "/status")
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				if comm, _ := os.ReadFile("/proc/" + child + "/comm"); strings.HasPrefix(string(comm), "systemd-nspawn") ||
					strings.HasPrefix(string(comm), "(sd-") {
					return 0
				}
				pid, _ := strconv.Atoi(child)
				return pid
			}
		}
	}
	return 0
}

// cut is the power cut: PID 1 and with it every process of the machine dies at once.
func (m *machine) cut() {
	m.t.Helper()
	m.mu.Lock()
	cmd, leader, gone := m.nspawn, m.leader, m.gone
	m.nspawn, m.leader = nil, 0
	m.mu.Unlock()
	if cmd == nil {
		return
	}
	syscall.Kill(leader, syscall.SIGKILL)
	select {
	case <-gone:
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		<-gone
	}
}

// groups are the control groups of the machine, one in each hierarchy that systemd
// looks at.
func (m *machine) groups() []string {
	name := "nixfleet-test-" + m.net.prefix + "-" + m.name
	text, err := os.ReadFile("/proc/self/cgroup")
	must(m.t, err)
	var groups []string
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		var mount string
		switch {
		case len(f) != 3:
			continue
		case f[1] == "name=systemd":
			mount = "/sys/fs/cgroup/systemd"
		case f[1] == "":
			mount = "/sys/fs/cgroup/unified"
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
				mount = "/sys/fs/cgroup"
			}
		case f[1] == "cpuset":
			continue
		default:
			mount = "/sys/fs/cgroup/" + f[1]
		}
		if _, err := os.Stat(mount + f[2]); err == nil {
			groups = append(groups, filepath.Join(mount, f[2], name))
		}
	}
	return groups
}

func (m *machine) dropGroups() {
	for _, group := range m.groups() {
		var dirs []string
		filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			syscall.Rmdir(dir)
		}
	}
}

// pid is that of the machine's PID 1 outside, 0 while it is off.
func (m *machine) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader
}

var errOff = errors.New("the machine is off")

// try runs a command inside, as root, and gives what it printed.
func (m *machine) try(args ...string) (string, error) {
	leader := m.pid()
	if leader == 0 {
		return "", errOff
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter",
		append([]string{"-t", strconv.Itoa(leader), "-m", "-p", "-i", "-u", "-n", "-C", "--"}, args...)...)
	cmd.Env = []string{"PATH=" + nixInside + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root",
		"LANG=C"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w\n%s", m.name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	must(m.t, err)
	return out
}

// reboot has the machine reboot in an orderly way, and waits until it boots again. What is
// given is called once the order is out.
func (m *machine) reboot(ordered func()) {
	m.t.Helper()
	before := m.booted()
	said, err := m.try("systemctl", "reboot") // which may be ended by what it began
	if ordered != nil {
		ordered()
	}
	until(m.t, m.name+" reboots", func() string {
		if m.booted() == before {
			return fmt.Sprintf("systemctl reboot: %v\n%s", err, said)
		}
		return ""
	})
}

// booted is how often the machine was switched on.
func (m *machine) booted() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boots
}

func (m *machine) console() string {
	text, _ := os.ReadFile(filepath.Join(m.dir, "console"))
	return string(text[max(0, len(text)-4000):])
}

func (m *machine) journal() string {
	out, err := m.try("journalctl", "--no-pager", "-o", "short-precise", "-n", "300", "-u", "nixfleet-*", "-u",
		"network-*", "-u", "app*", "-u", "init.scope")
	if err != nil {
		out += m.console()
	}
	return out[max(0, len(out)-24000):]
}
