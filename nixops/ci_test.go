package nixops_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
)

// flake declares three machines, one with a name that needs quoting.
const flake = `{
  outputs = _:
    let
      system = name: derivation {
        name = "nixos-system-${name}"; system = builtins.currentSystem or "x86_64-linux";
        builder = "/bin/sh"; PATH = "/usr/bin:/bin";
        args = [ "-c" "echo building ${name} >&2; mkdir -p $out/bin; printf '#!/bin/sh\n' >$out/bin/switch-to-configuration; chmod 755 $out/bin/switch-to-configuration" ];
      };
    in {
      nixosConfigurations = {
        web-1.config.system.build.toplevel = system "web-1";
        "db.example".config.system.build.toplevel = system "db";
      };
      darwinConfigurations.mac.system = system "mac";
      fleet.resolved = { schemaVersion = 1; hosts.web-1 = { }; };
      slow = builtins.foldl' (a: b: a + b) 0 (builtins.genList (x: builtins.length (builtins.genList (y: y) x)) 100000);
    };
}
`

func TestCI(t *testing.T) {
	nix := testnix.Find(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "flake.nix"), []byte(flake), 0o644))
	store := nix.NewStore(t)
	var mu sync.Mutex
	var said []string
	ci := nixops.CI{Nix: nix.Bin(), NixConfDir: nix.ConfDir(), Store: store.Dir, Progress: func(line string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, line)
	}}
	ref := "path:" + dir
	hosts, err := ci.ListHosts(t.Context(), ref)
	want := []nixops.FlakeHost{{Name: "db.example", Kind: nixops.KindNixOS}, {Name: "mac", Kind: nixops.KindDarwin},
		{Name: "web-1", Kind: nixops.KindNixOS}}
	if err != nil || !slices.Equal(hosts, want) {
		t.Fatalf("hosts %v, %v", hosts, err)
	}
	value, err := ci.Eval(t.Context(), ref, "fleet.resolved")
	if err != nil || !strings.Contains(string(value), `"schemaVersion":1`) {
		t.Errorf("eval: %s, %v", value, err)
	}
	if whole, err := ci.Eval(t.Context(), "/nowhere", ref+"#fleet.resolved"); err != nil ||
		string(whole) != string(value) {
		t.Errorf("eval of a whole reference: %s, %v", whole, err)
	}
	if _, err := ci.Eval(t.Context(), ref, "fleet.missing"); err == nil ||
		!strings.Contains(err.Error(), "fleet.missing") {
		t.Errorf("eval of what is not there: %v", err)
	}
	// What is built stays while its link does, whoever collects garbage meanwhile.
	kept := ci
	kept.Roots = t.TempDir()
	first, err := kept.Build(t.Context(), ref, hosts[0])
	must(t, err)
	collect := func() bool {
		nix.Run(t, "nix-store", "--store", store.Dir, "--gc", "--quiet")
		_, err := os.Lstat(store.Dir + first)
		return err == nil
	}
	if !collect() {
		t.Errorf("%s was collected although it is wanted", first)
	}
	must(t, os.RemoveAll(kept.Roots))
	if collect() {
		t.Errorf("%s is kept although nobody wants it", first)
	}
	var paths []string
	for _, h := range hosts {
		path, err := ci.Build(t.Context(), ref, h)
		if err != nil || !strings.HasPrefix(path, "/nix/store/") {
			t.Fatalf("build %s: %q, %v", h.Name, path, err)
		}
		paths = append(paths, path)
	}
	mu.Lock()
	if !slices.ContainsFunc(said, func(l string) bool { return strings.Contains(l, "nixos-system-web-1") }) {
		t.Errorf("progress: %q", said)
	}
	mu.Unlock()
	if _, err := ci.Build(t.Context(), ref, nixops.FlakeHost{Name: `x"; evil`, Kind: nixops.KindNixOS}); err == nil {
		t.Error("built a host that is none")
	}

	// What was copied with a key is accepted by a host that believes the key, and
	// by no other.
	key, foreign := nix.NewKey(t, "cache-1"), nix.NewKey(t, "cache-1")
	cache := nix.NewCache(t)
	must(t, ci.Copy(t.Context(), paths, "file://"+cache.Dir, key.SecretFile))
	must(t, ci.Copy(t.Context(), nil, "file:///nowhere", ""))
	for _, c := range []struct {
		key  testnix.Key
		want error
	}{{key, nil}, {foreign, nixops.ErrUnsigned}} {
		host, err := nixops.NewHost(nix.Config(testnix.TempDir(t), []*testnix.Cache{cache}, c.key))
		must(t, err)
		if err := host.Realise(t.Context(), filepath.Base(paths[2]), nil); !errors.Is(err, c.want) || c.want == nil &&
			err != nil {
			t.Errorf("realise: %v, want %v", err, c.want)
		}
	}
	if err := ci.Copy(t.Context(), paths, "file:///dev/null/x", ""); err == nil {
		t.Error("copied to nowhere")
	}
	ci.EvalTimeout = 300 * time.Millisecond
	began := time.Now()
	if _, err := ci.Eval(t.Context(), ref, "slow"); !errors.Is(err, context.DeadlineExceeded) ||
		time.Since(began) > 10*time.Second {
		t.Errorf("slow evaluation: %v after %v", err, time.Since(began))
	}
}

func TestListHostsWithoutDarwin(t *testing.T) {
	nix := testnix.Find(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "flake.nix"), []byte(`{ outputs = _: { nixosConfigurations.a = { }; }; }`),
		0o644))
	ci := nixops.CI{Nix: nix.Bin(), NixConfDir: nix.ConfDir(), Store: nix.NewStore(t).Dir}
	hosts, err := ci.ListHosts(t.Context(), "path:"+dir)
	if err != nil || len(hosts) != 1 {
		t.Errorf("hosts %v, %v", hosts, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "flake.nix"),
		[]byte(`{ outputs = _: { nixosConfigurations = throw "broken fleet"; }; }`), 0o644))
	if _, err := ci.ListHosts(t.Context(), "path:"+dir); err == nil || !strings.Contains(err.Error(), "broken fleet") {
		t.Errorf("a broken flake: %v", err)
	}
}
