package nixops_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/nixops/testnix"
)

// A rig is one machine under the contract test, with what is done to it from outside.
type rig struct {
	host nixops.Host
	// publish makes a closure of that behaviour and puts it into the cache.
	publish func(name string, c sim.Closure) string
	// install makes a closure the only system of the machine.
	install func(closure string)
	// reopen is the same machine seen by a new process.
	reopen func() nixops.Host
	// abandon starts a switch from a caller that is gone before it ends.
	abandon func(r nixops.SwitchRequest)
	// abandonArmed arms a deadline from a caller that is gone before it fires. Firing
	// makes fired() true.
	abandonArmed func(unit string, after time.Duration)
	fired        func() bool
	gc           func()
	holdLock     func() (release func())
	lockExists   func() bool
	unreachable  func()
	leaveLists   func()
	bootsOnce    func(can bool)                  // the machine has a loader that can, or one that cannot
	collector    func(evidence string, exit int) // the machine has a collector that writes it and exits so
	output       string                          // part of what every activation writes
}

// failed names the units that failed.
func (r *rig) failed(t *testing.T) ([]string, error) {
	t.Helper()
	units, err := r.host.Units(t.Context())
	names := []string{}
	for _, u := range units {
		if u.Failed {
			names = append(names, u.Name)
		}
	}
	return names, err
}

func newSimRig(t *testing.T) *rig {
	dir, cache := t.TempDir(), t.TempDir()
	open := func() *sim.Host {
		s, err := sim.New(dir, cache)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	box := open()
	t.Cleanup(box.Close)
	n := 0
	fired := make(chan struct{}, 1)
	r := &rig{host: box, output: "activating the configuration"}
	r.publish = func(name string, c sim.Closure) string {
		n++
		base := fmt.Sprintf("%032d-%s", n, name)
		if err := sim.WriteClosure(cache, base, c); err != nil {
			t.Fatal(err)
		}
		return base
	}
	r.install = func(closure string) {
		if err := box.Install(closure); err != nil {
			t.Fatal(err)
		}
	}
	r.reopen = func() nixops.Host { return open() }
	r.abandon = func(req nixops.SwitchRequest) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := box.Switch(ctx, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("abandoned switch: %v", err)
		}
	}
	r.abandonArmed = func(unit string, after time.Duration) {
		box.OnDeadline(func(nixops.Deadline) { fired <- struct{}{} })
		ctx, cancel := context.WithCancel(t.Context())
		must(t, box.ArmDeadline(ctx, nixops.Deadline{Unit: unit, After: after, Command: []string{"/bin/true"}}))
		cancel()
	}
	done := false
	r.fired = func() bool {
		select {
		case <-fired:
			done = true
		default:
		}
		return done
	}
	r.gc = func() {
		if _, err := box.CollectGarbage(); err != nil {
			t.Fatal(err)
		}
	}
	r.holdLock = func() func() {
		must(t, box.HoldLock(true))
		return func() { must(t, box.HoldLock(false)) }
	}
	r.lockExists = func() bool { return true }
	r.unreachable = func() { must(t, os.WriteFile(filepath.Join(cache, "unreachable"), nil, 0o600)) }
	r.leaveLists = func() {}
	r.bootsOnce = func(can bool) {
		must(t, box.SetLoader(map[bool]string{false: "grub"}[can]))
	}
	r.collector = func(evidence string, exit int) {
		must(t, box.Install(r.publish("nixos-system-collector",
			sim.Closure{After: sim.After{Evidence: evidence, CollectorExit: exit}})))
	}
	return r
}

func newRealRig(t *testing.T, nix testnix.Nix, change func(*nixops.HostConfig)) *rig {
	root := testnix.TempDir(t)
	store, cache := nix.NewStore(t), nix.NewCache(t)
	key, foreign := nix.NewKey(t, "cache-1"), nix.NewKey(t, "cache-1")
	config := nix.Config(root, []*testnix.Cache{cache}, key)
	config.Bootctl = filepath.Join(t.TempDir(), "bootctl")
	must(t, os.WriteFile(config.Bootctl, []byte(stubBootctl), 0o755))
	change(&config)
	open := func() nixops.Host {
		h, err := nixops.NewHost(config)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	r := &rig{host: open(), output: "activating the configuration"}
	other := ""
	r.publish = func(name string, c sim.Closure) string {
		spec := testnix.Spec{
			Name: name, ExitCode: c.Script.ExitCode, BootExit: c.Script.BootExit, CheckExit: c.Script.CheckExit,
			NoCheck:       c.Script.NoCheck,
			SwitchSeconds: c.Script.SwitchTime.Seconds(), FailedUnits: c.After.FailedUnits, TrustJSON: c.TrustJSON,
			NoSwitch: c.NoSwitch,
			Files:    map[string]string{}, Restarts: map[string]int{}, InactiveUnits: c.After.Inactive,
		}
		for _, unit := range c.After.CrashLoop {
			spec.Restarts[unit] = 3
		}
		if c.Agent != "" {
			spec.Agent = c.Agent
		}
		for file, text := range map[string]string{
			"kernel-params": c.KernelParams, "switch-inhibitors": c.SwitchInhibitor, "nixos-version": c.Version,
		} {
			if text != "" {
				spec.Files[file] = text
			}
		}
		closure := store.Build(t, spec)
		signer := key
		if c.Cache.Signature == "foreign" {
			signer = foreign
		}
		cache.Push(t, store, signer, closure)
		switch c.Cache.Signature {
		case "unsigned":
			cache.DropSignatures(t, closure)
		case "corrupt":
			cache.Corrupt(t, closure)
		case "other-path":
			if other == "" {
				other = store.Build(t, testnix.Spec{Name: "other"})
				cache.Push(t, store, key, other)
			}
			cache.EditNarinfo(t, closure, func(text string) string { return strings.ReplaceAll(text, closure, other) })
		}
		return closure
	}
	r.install = func(closure string) {
		ctx := t.Context()
		must(t, r.host.Realise(ctx, closure, nil))
		must(t, r.host.SetProfile(ctx, closure))
		must(t, r.host.RestoreCurrent(ctx, closure))
		if exit, err := r.host.Switch(ctx,
			nixops.SwitchRequest{Closure: closure, Action: nixops.ActionBoot, Unit: "install"}); err != nil || !exit.OK() {
			t.Fatalf("install: %v %v", exit, err)
		}
	}
	r.reopen = open
	r.abandon = func(req nixops.SwitchRequest) { runHelper(t, helperJob{Config: config, Switch: &req}) }
	proof := filepath.Join(root, "deadline-fired")
	r.abandonArmed = func(unit string, after time.Duration) {
		runHelper(t, helperJob{Config: config, Deadline: &nixops.Deadline{
			Unit: unit, After: after, Command: []string{"/bin/sh", "-c", "echo undone; : >" + proof},
		}})
	}
	r.fired = func() bool { _, err := os.Stat(proof); return err == nil }
	r.gc = func() { nix.Run(t, "nix-store", "--store", root, "--gc") }
	lock := filepath.Join(root, "run/nixos/switch-to-configuration.lock")
	r.holdLock = func() func() {
		must(t, os.MkdirAll(filepath.Dir(lock), 0o755))
		f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		return func() { f.Close() }
	}
	r.lockExists = func() bool { _, err := os.Stat(lock); return err == nil }
	r.unreachable = cache.Stop
	r.bootsOnce = func(can bool) {
		// Attributes, then the features: all but the one that counts, or that one only.
		features := "\x06\x00\x00\x00\xf7\xff\x00\x00\x00\x00\x00\x00"
		if can {
			features = "\x06\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00"
		}
		dir := filepath.Join(root, "sys/firmware/efi/efivars")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "LoaderFeatures-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), []byte(features),
			0o600))
	}
	r.collector = func(evidence string, exit int) {
		dir := filepath.Join(root, "var/lib/nixfleet-compliance")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.MkdirAll(filepath.Join(root, "run/nixfleet"), 0o755))
		program := fmt.Sprintf("#!/bin/sh\nprintf %%s '%s' >%s\nexit %d\n", evidence,
			filepath.Join(dir, "evidence.json"), exit)
		must(t, os.WriteFile(filepath.Join(root, "run/nixfleet", nixops.CollectorUnit), []byte(program), 0o755))
	}
	r.leaveLists = func() {
		must(t, os.MkdirAll(filepath.Join(root, "run/nixos"), 0o755))
		for _, l := range []string{"start-list", "restart-list", "reload-list", "activation-restart-list"} {
			must(t, os.WriteFile(filepath.Join(root, "run/nixos", l), []byte("bad.service\n"), 0o644))
		}
		t.Cleanup(func() {
			left, _ := filepath.Glob(filepath.Join(root, "run/nixos/*-list"))
			if len(left) > 0 {
				t.Errorf("lists of a killed switch are left: %v", left)
			}
		})
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// installed starts with one good system.
func (r *rig) installed(t *testing.T, c sim.Closure) string {
	t.Helper()
	base := r.publish("nixos-system-one", c)
	r.install(base)
	return base
}

func (r *rig) expect(t *testing.T, what string, read func(context.Context) (string, error), want string) {
	t.Helper()
	got, err := read(t.Context())
	if err != nil || got != want {
		t.Errorf("%s is %q (%v), want %q", what, got, err, want)
	}
}

func (r *rig) test(t *testing.T, closure, unit string, env ...string) (nixops.Exit, error) {
	t.Helper()
	return r.host.Switch(t.Context(),
		nixops.SwitchRequest{Closure: closure, Action: nixops.ActionTest, Unit: unit, Env: env})
}
