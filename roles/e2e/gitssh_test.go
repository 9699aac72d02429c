package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"testing"
	"time"
)

// sshForge is a real sshd on loopback that runs as whoever runs the test, with
// keys and configuration of its own.
type sshForge struct {
	*simFleet
	source string // git+ssh://…
	port   string
}

func newSSHForge(t *testing.T, f *simFleet) *sshForge {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		// Debian has it outside of the PATH of users.
		if sshd, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			t.Skip("no sshd: install openssh-server")
		}
	}
	me, err := user.Current()
	f.must(err)
	if me.Uid == "0" {
		f.must(os.MkdirAll("/run/sshd", 0o755)) // where root's sshd shuts its children in
	}
	_, port, err := net.SplitHostPort(freeAddress(t))
	f.must(err)
	f.must(os.Mkdir(f.path("ssh"), 0o700))
	for _, key := range []string{"host", "other-host", "deploy", "stranger"} {
		f.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", f.path("ssh/"+key))
	}
	f.write("ssh/authorized_keys", "restrict "+f.read("ssh/deploy.pub"))
	f.write("ssh/known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s", port, f.read("ssh/host.pub")))
	f.write("ssh/known_other", fmt.Sprintf("[127.0.0.1]:%s %s", port, f.read("ssh/other-host.pub")))
	f.write("ssh/known_nobody", "")
	f.write("ssh/sshd_config", strings.Join([]string{
		"ListenAddress 127.0.0.1:" + port, "HostKey " + f.path("ssh/host"),
		"AuthorizedKeysFile " + f.path("ssh/authorized_keys"),
		"PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"PermitRootLogin prohibit-password",
	}, "\n")+"\n")
	log, err := os.Create(f.path("ssh/log"))
	f.must(err)
	cmd := exec.Command(sshd, "-D", "-e", "-f", f.path("ssh/sshd_config"))
	cmd.Stdout, cmd.Stderr = log, log
	f.must(cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if t.Failed() {
			t.Logf("sshd:\n%s", f.read("ssh/log"))
		}
	})
	f.until("sshd listens", func() bool {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return &sshForge{f, fmt.Sprintf("git+ssh://%s@127.0.0.1:%s%s#main", me.Username, port, f.path("fleet.git")), port}
}

// TestGitSSHSource reads releases through a real sshd: with the pinned host key and
// the deploy key, and with neither replaced nor left out.
func TestGitSSHSource(t *testing.T) {
	t.Parallel()
	f := newSSHForge(t, newSimFleet(t, "web-1"))
	f.machine("web-1")
	f.release(1)
	f.must(os.WriteFile(f.path("ssh/readable"), []byte(f.read("ssh/deploy")), 0o644))
	var said int
	serve := func(source, key, known string) {
		t.Helper()
		if f.stopCP != nil {
			f.stopCP()
		}
		if log, err := os.ReadFile(f.path("cp.log")); err == nil {
			said = len(log)
		}
		f.stopCP = f.serve("--poll-interval", "1s", "--source", source, "--source-ssh-key-file", f.path("ssh/"+key),
			"--source-known-hosts-file", f.path("ssh/"+known))
	}
	says := func(words string) {
		t.Helper()
		f.until("the log says "+words, func() bool { return strings.Contains(f.read("cp.log")[said:], words) })
	}
	for _, c := range []struct{ name, source, key, known, error, hint string }{
		{"another host key", f.source, "deploy", "known_other", "Host key verification failed", "--source-known-hosts-file"},
		{"no host key", f.source, "deploy", "known_nobody", "Host key verification failed", "ssh-keyscan"},
		{"another key", f.source, "stranger", "known_hosts", "Permission denied (publickey)", "deploy key"},
		{"no key", f.source, "none", "known_hosts", "Permission denied (publickey)", "deploy key"},
		{"a key that others can read", f.source, "readable", "known_hosts", "Permission denied (publickey)", "chmod 600"},
		{"no such repository", strings.Replace(f.source, "fleet.git", "none.git", 1), "deploy", "known_hosts",
			"does not appear to be a git repository", "is the path in --source right"},
		{"no such branch", strings.Replace(f.source, "#main", "#none", 1), "deploy", "known_hosts", "no such branch", ""},
		{"nobody listens", strings.Replace(f.source, ":"+f.port, ":1", 1), "deploy", "known_hosts", "Connection refused",
			"is the forge up"},
	} {
		serve(c.source, c.key, c.known)
		says("release not accepted")
		if log := f.read("cp.log")[said:]; !strings.Contains(log, c.error) ||
			!strings.Contains(log, `"hint":"`) == (c.hint != "") || !strings.Contains(log, c.hint) ||
			strings.Contains(log, "snapshot refreshed") {
			t.Errorf("%s: the log should say %q and hint at %q:\n%s", c.name, c.error, c.hint, log)
		}
	}

	serve(f.source, "deploy", "known_hosts")
	says("snapshot refreshed")
	f.mint("web-1")
	f.startAgent("web-1")
	f.converged(1, "web-1")
	// The next release comes the same way, without a restart.
	f.release(2)
	f.converged(2, "web-1")
	// A forge that shows another key from now on changes nothing.
	f.write("ssh/known_hosts", f.read("ssh/known_other"))
	f.release(3)
	says("Host key verification failed")
	f.converged(2, "web-1")
}
