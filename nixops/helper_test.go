package nixops_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"

	"nixfleet/nixops"
)

// helperJob is what a second process of this test binary does before it is killed.
type helperJob struct {
	Config   nixops.HostConfig
	Switch   *nixops.SwitchRequest
	Deadline *nixops.Deadline
}

// helperConfig is HostConfig without what is not data.
type helperConfig struct {
	Root, Nix, NixConfDir, Supervisor, RunDir, Launchctl string
	Substituters, TrustedPublicKeys                      []string
}

type helperOrder struct {
	Config   helperConfig
	Switch   *nixops.SwitchRequest
	Unit     string
	AfterMs  int64
	Deadline []string
}

const helperEnv = "NIXFLEET_NIXOPS_HELPER"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperEnv); job != "" {
		if err := help(job); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// help does the job; a switch is announced and then waited for, until the kill.
func help(job string) error {
	var o helperOrder
	if err := json.Unmarshal([]byte(job), &o); err != nil {
		return err
	}
	c := o.Config
	host, err := nixops.NewHost(nixops.HostConfig{
		Root: c.Root, Nix: c.Nix, NixConfDir: c.NixConfDir, Supervisor: c.Supervisor, RunDir: c.RunDir,
		Launchctl:    c.Launchctl,
		Substituters: c.Substituters, TrustedPublicKeys: c.TrustedPublicKeys, Log: zerolog.Nop(),
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if o.Switch == nil {
		err := host.ArmDeadline(ctx, nixops.Deadline{Unit: o.Unit, After: time.Duration(o.AfterMs) * time.Millisecond,
			Command: o.Deadline})
		if err != nil {
			return err
		}
		fmt.Println("ready")
		select {}
	}
	go func() {
		for {
			if state, err := host.SwitchState(ctx, o.Switch.Unit); err == nil && state.Phase == nixops.UnitRunning {
				if held, err := host.LockHeld(ctx); err == nil && held {
					fmt.Println("ready")
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err = host.Switch(ctx, *o.Switch)
	return err
}

// runHelper has another process do the job and kills it, and everything in its
// process group, in the middle.
func runHelper(t *testing.T, job helperJob) {
	t.Helper()
	c := job.Config
	o := helperOrder{Switch: job.Switch, Config: helperConfig{
		Root: c.Root, Nix: c.Nix, NixConfDir: c.NixConfDir, Supervisor: c.Supervisor, RunDir: c.RunDir,
		Launchctl:    c.Launchctl,
		Substituters: c.Substituters, TrustedPublicKeys: c.TrustedPublicKeys,
	}}
	if job.Deadline != nil {
		o.Unit, o.AfterMs, o.Deadline = job.Deadline.Unit, job.Deadline.After.Milliseconds(), job.Deadline.Command
	}
	text, err := json.Marshal(o)
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	ownGroup(cmd)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	killGroup(t, cmd)
	cmd.Wait()
	if err != nil || strings.TrimSpace(line) != "ready" {
		t.Fatalf("helper said %q, %v", line, err)
	}
}

func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func killGroup(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
}
