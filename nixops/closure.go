package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/disk"
)

// Bounds in bytes of what is read from a closure.
const (
	maxTrust = 1 << 20
	maxFact  = 64 << 10
)

func (m *machine) Inspect(ctx context.Context, closure string) (Closure, error) {
	if err := m.nix.valid(ctx, closure); err != nil {
		return Closure{}, err
	}
	c, err := inspect(m.root, m.platform, closure)
	if err != nil {
		return Closure{}, fmt.Errorf("inspect %s: %w", closure, err)
	}
	return c, nil
}

func inspect(root, platform, closure string) (Closure, error) {
	top := storeDir + "/" + closure
	c := Closure{Name: closure}
	// What a closure lacks is left out; only what cannot be read is an error.
	var failed []error
	link := func(name string) string {
		path, err := resolve(root, top+"/"+name)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, err)
			}
			return ""
		}
		return path
	}
	content := func(name string, limit int64) []byte {
		path := link(name)
		if path == "" {
			return nil
		}
		data, err := disk.Read(root+path, limit)
		if err != nil {
			failed = append(failed, err)
		}
		return data
	}

	if command, err := switchCommand(platform, top, ActionTest); err == nil {
		script := link(strings.TrimPrefix(command[0], top+"/"))
		c.HasSwitch = script != "" && executable(root+script)
	}
	c.Kernel, c.Initrd, c.SystemdPath = link("kernel"), link("initrd"), link("systemd")
	c.KernelParams = string(content("kernel-params", maxFact))
	c.SwitchInhibitor = string(content("switch-inhibitors", maxFact))
	c.Version = strings.TrimSpace(string(content("nixos-version", maxFact)))
	c.SourceDate = SourceDate(c.Version)
	c.TrustJSON = content("etc/nixfleet/agent/trust.json", maxTrust)
	if unit := link("etc/systemd/system/dbus.service"); unit != "" {
		c.DBus = strings.TrimSuffix(filepath.Base(unit), ".service")
	}
	// The links of a package's bin are all one file here; the name that the role
	// is picked by is lost, so callers compare and execute this with arguments.
	if agent := link("sw/bin/nixfleet-agent"); agent != "" && executable(root+agent) {
		c.AgentPath = root + agent
	}
	entries, err := os.ReadDir(root + top + "/specialisation")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed = append(failed, err)
	}
	for _, e := range entries {
		if base := closureOf(link("specialisation/" + e.Name())); base != "" {
			c.Specialisations = append(c.Specialisations, base)
		}
	}
	slices.Sort(c.Specialisations)
	return c, errors.Join(failed...)
}

// SupportsCheck asks the script for its usage, which it prints when it gets no
// action. Scripts before NixOS 25.05 do not know `check` and would fail it.
func (m *machine) SupportsCheck(ctx context.Context, closure string) (bool, error) {
	if m.platform == "darwin" {
		return false, nil
	}
	script, err := scriptOf(m.root, m.platform, closure, ActionCheck)
	if err != nil {
		return false, fmt.Errorf("%s: %w", closure, err)
	}
	c := command{path: script[0], timeout: 20 * time.Second}
	if m.root != "" {
		c.env = []string{"NIXFLEET_ROOT=" + m.root}
	}
	out, err := c.run(ctx)
	usage := string(out)
	if failed, ok := errors.AsType[*commandError](err); ok && failed.exitCode() > 0 {
		usage, err = usage+failed.stderr, nil
	}
	return strings.Contains(usage, "check"), err
}
