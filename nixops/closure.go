package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"nixfleet/nixops/disk"
)

// Bounds, in bytes, of the files that are read from a closure.
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
	// A file that the closure lacks is left out; a file that cannot be read is an error.
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
	c.Kernel = link("kernel")
	c.Initrd = link("initrd")
	c.KernelModules = link("kernel-modules")
	c.SystemdPath = link("systemd")
	c.KernelParams = string(content("kernel-params", maxFact))
	c.SwitchInhibitor = string(content("switch-inhibitors", maxFact))
	c.Version = strings.TrimSpace(string(content("nixos-version", maxFact)))
	c.SourceDate = SourceDate(c.Version)
	c.TrustJSON = content("etc/nixfleet/agent/trust.json", maxTrust)
	if unit := link("etc/systemd/system/dbus.service"); unit != "" {
		c.DBus = strings.TrimSuffix(filepath.Base(unit), ".service")
	}
	// All links of the package's bin lead to one file. AgentPath therefore lacks the name by which the
	// executable chooses its role, and callers name the role in the arguments.
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

// SupportsCheck runs the script without an action, so that it prints its usage. Scripts of NixOS before 25.05 do not
// know `check` and would fail.
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
	return listsAction(usage, ActionCheck), err
}

// usageActions matches the list of actions in the usage of switch-to-configuration, for example
// "Usage: switch-to-configuration [check|switch|boot|test|dry-activate]". The name of the script may hold any word.
var usageActions = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\[((?:[a-z-]+\|)+[a-z-]+)\]`)
})

func listsAction(usage string, action Action) bool {
	for _, list := range usageActions().FindAllStringSubmatch(usage, -1) {
		if actions := strings.Split(list[1], "|"); slices.Contains(actions, string(ActionTest)) {
			return slices.Contains(actions, string(action))
		}
	}
	return false
}
