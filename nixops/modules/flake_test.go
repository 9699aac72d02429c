package modules

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nixfleet/nixops/testnix"
)

// flake is the outputs of flake.nix for a nixpkgs that is its real lib and
// packages that nobody has built.
const flake = `let
  self = (import (root + "/flake.nix")).outputs {
    inherit self;
    nixpkgs = { inherit lib legacyPackages; };
  };
  inherit (import (root + "/nixops/modules/stub.nix") { inherit lib; modules = [ ]; }) parts;
  legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ] (system: let
    pkgs = parts.pkgs // {
      inherit system;
      callPackage = file: arguments: let
        made = import file ({ inherit lib; stdenv = pkgs.stdenv; buildGoModule = attrs: attrs; } // arguments);
      in parts.package made.pname // { inherit (made) meta vendorHash; inherit made; };
      pkgsStatic = pkgs;
      stdenv.hostPlatform = { inherit system; isLinux = lib.hasSuffix "linux" system; };
      extend = overlay: pkgs // overlay pkgs pkgs;
      mkShell = attrs: parts.package "shell";
      writeShellScriptBin = name: text: parts.package name;
      go = null; go-tools = null; nixfmt = null; nixfmt-tree = parts.package "nixfmt-tree";
      testers.runNixOSTest = test: parts.package test.name;
      path = root + "/nixops/modules/testdata/nixpkgs";
    };
  in pkgs);
in
`

func TestFlakeHasItsOutputs(t *testing.T) {
	nixpkgsLib(t)
	var got map[string][]string
	err := evaluate(t, flake+`{
  top = lib.attrNames (removeAttrs self [ ]);
  linux = lib.attrNames self.packages.aarch64-linux;
  darwin = lib.attrNames self.packages.x86_64-darwin;
  apps = lib.attrNames self.apps.x86_64-linux;
  programs = lib.mapAttrsToList (_: a: a.program) self.apps.x86_64-linux;
  nixosModules = lib.attrNames self.nixosModules;
  darwinModules = lib.attrNames self.darwinModules;
  overlays = lib.attrNames self.overlays;
  overlaid = [ (self.overlays.default legacyPackages.x86_64-linux { }).nixfleet.name ];
  lib = lib.attrNames self.lib;
  templates = lib.mapAttrsToList (_: t: toString t.path) self.templates;
  checks = lib.mapAttrsToList (name: c: "${name} ${c}") self.checks.x86_64-linux;
  darwinChecks = lib.attrNames self.checks.aarch64-darwin;
  devShells = lib.attrNames self.devShells.x86_64-linux;
  vendorHash = [ self.packages.x86_64-linux.default.vendorHash ];
  platforms = lib.optional self.packages.x86_64-linux.nixfleet-static.meta.broken "the static one is broken";
  tags = self.packages.x86_64-linux.nixfleet-static.made.tags;
}`, &got)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := os.ReadFile("../vendor-hash")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"top":           "apps checks darwinModules devShells formatter lib nixosModules overlays packages templates",
		"linux":         "default nixfleet nixfleet-static",
		"darwin":        "default nixfleet",
		"apps":          "default demo nixfleet",
		"nixosModules":  "agent cache control-plane default operator trust",
		"darwinModules": "agent",
		"overlays":      "default",
		"overlaid":      "nixfleet",
		"lib":           "matches mergeFleets mkFleet mkHost withSignature",
		"templates":     root + "/nixops/template/fleet " + root + "/nixops/template/fleet",
		"darwinChecks":  "nixfleet",
		"devShells":     "default",
		"vendorHash":    strings.TrimSpace(string(hash)),
		"platforms":     "",
		"tags":          "sqlite_omit_load_extension nethttpomithttp2 urfave_cli_no_docs netgo osusergo",
	} {
		if have := strings.Join(got[name], " "); have != want {
			t.Errorf("%s: %q, want %q", name, have, want)
		}
	}
	for _, check := range []string{"vm-enrol", "vm-deploy", "vm-rollback", "vm-unbootable", "vm-revoke", "vm-wipe",
		"nixfleet ", "nixfleet-static"} {
		if !slices.ContainsFunc(got["checks"], func(c string) bool { return strings.HasPrefix(c, check) }) {
			t.Errorf("there is no check %s: %q", check, got["checks"])
		}
	}
}

// What a user imports: all modules at once, one of them a second time, and the
// package of the flake without an overlay.
func TestFlakeModulesCanBeImportedTwice(t *testing.T) {
	nixpkgsLib(t)
	var r rendered
	err := evaluate(t, flake+`stub [
  self.nixosModules.default
  self.nixosModules.agent
  (configurations + "/trust.nix")
  { _module.args.pkgs = lib.mkForce (removeAttrs legacyPackages.x86_64-linux [ "nixfleet" ]); }
  {
    services.nixfleet-agent = { enable = true; controlPlaneUrl = "https://cp"; };
    nixfleet.operator.enable = true;
  }
]`, &r)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failed) > 0 || !strings.Contains(r.Units["nixfleet-agent.service"], "-nixfleet/bin/nixfleet agent run") {
		t.Errorf("failed %q, unit %s", r.Failed, r.Units["nixfleet-agent.service"])
	}
}

// A module that is imported on the other kind of system says so, rather than that some
// option of it does not exist.
func TestModulesAreOfTheirKindOfSystem(t *testing.T) {
	nixpkgsLib(t)
	for module, class := range map[string]string{
		"nixosModules.default": "darwin", "nixosModules.agent": "darwin", "nixosModules.control-plane": "darwin",
		"nixosModules.operator": "darwin",
		"darwinModules.agent":   "nixos",
	} {
		err := evaluate(t,
			flake+
				fmt.Sprintf(`(lib.evalModules { class = "%s"; modules = [ parts.nixos { _module.args.pkgs = parts.pkgs; } self.%s ]; }).config.assertions`, class, module), nil)
		if err == nil || !strings.Contains(err.Error(), "cannot be imported into a module evaluation that expects class") {
			t.Errorf("%s in a %s system: %v", module, class, err)
		}
	}
	err := evaluate(t,
		flake+
			`map (class: (lib.evalModules { inherit class; modules = [ parts.nixos { _module.args.pkgs = parts.pkgs; } self.nixosModules.trust ]; }).config.assertions) [ "nixos" "darwin" ]`, nil)
	if err != nil {
		t.Errorf("the trust module is for both: %v", err)
	}
}

// mkHost builds for a Mac with the caller's nix-darwin, and says so when it is missing.
func TestMkHostForDarwin(t *testing.T) {
	nixpkgsLib(t)
	const host = flake + `let
  host = self.lib.mkHost ({
    nixpkgs = throw "a Mac needs nix-darwin only";
    name = "mac-01";
    system = "aarch64-darwin";
    modules = [ (configurations + "/trust.nix") { services.nixfleet-agent = { enable = true; controlPlaneUrl = "https://cp"; }; } ];
  } // %s);
in parts.render host.config`
	var r rendered
	if err := evaluate(t, fmt.Sprintf(host, `{ }`), &r); err == nil ||
		!strings.Contains(err.Error(), "host 'mac-01' is on aarch64-darwin; pass nix-darwin") {
		t.Errorf("without nix-darwin: %v", err)
	}
	err := evaluate(t, fmt.Sprintf(host, `{ nix-darwin.lib.darwinSystem = { modules, specialArgs }: lib.evalModules {
  modules = [ parts.nixos { _module.args.pkgs = legacyPackages.aarch64-darwin; } ] ++ modules;
}; }`), &r)
	if err != nil {
		t.Fatal(err)
	}
	if daemon := string(r.Daemons["nixfleet-agent"]); len(r.Failed) > 0 ||
		!strings.Contains(daemon, "--machine-id=mac-01") {
		t.Errorf("failed %q, daemon %s", r.Failed, daemon)
	}
}

// mkHost takes what a v1 fleet hands it: the host has its name, its version and, where
// modules read them, the facts of hostSpec and the inputs.
func TestMkHostTakesV1Arguments(t *testing.T) {
	nixpkgsLib(t)
	const host = flake + `let
  nixosSystem = { modules, specialArgs }: lib.evalModules {
    inherit specialArgs;
    modules = [ parts.nixos { _module.args.pkgs = legacyPackages.x86_64-linux; } ] ++ modules;
  };
  self' = (import (root + "/flake.nix")).outputs {
    self = self';
    nixpkgs = { lib = lib // { inherit nixosSystem; }; inherit legacyPackages; };
  };
  host = self'.lib.mkHost (%s);
in `
	const v1 = `{
    hostName = "web-01";
    platform = "x86_64-linux";
    hostSpec = { userName = "op"; timeZone = "Europe/Paris"; };
    extraInputs.secrets = "the secrets of the fleet";
    modules = [
      (configurations + "/trust.nix")
      ({ config, inputs, lib, ... }: {
        options.hostSpec.rack = lib.mkOption { type = lib.types.str; default = "r1"; };
        options.said = lib.mkOption { type = lib.types.str; };
        config.said = "${config.hostSpec.userName} ${config.hostSpec.timeZone} ${config.hostSpec.rack} ${inputs.secrets} ${lib.boolToString config.hostSpec.isDarwin}";
        config.services.nixfleet-agent = { enable = true; controlPlaneUrl = "https://cp"; };
      })
    ];
  }`
	var got struct {
		Said, Version string
		Unit          rendered
	}
	if err := evaluate(t, fmt.Sprintf(host, v1)+`{
  Said = host.config.said;
  Version = host.config.system.stateVersion;
  Unit = parts.render host.config;
}`, &got); err != nil {
		t.Fatal(err)
	}
	if want := "op Europe/Paris r1 the secrets of the fleet false"; got.Said != want || got.Version != "24.11" {
		t.Errorf("modules read %q and version %q, want %q and 24.11", got.Said, got.Version, want)
	}
	if unit := got.Unit.Units["nixfleet-agent.service"]; len(got.Unit.Failed) > 0 ||
		!strings.Contains(unit, "--machine-id=web-01") {
		t.Errorf("failed %q, unit %s", got.Unit.Failed, unit)
	}
	// A name with dots is the host's name and domain, and all of it the agent's.
	var dotted []string
	if err := evaluate(t, fmt.Sprintf(host, `{
    name = "web.fra.example"; system = "x86_64-linux";
    modules = [ { options.networking.domain = lib.mkOption { }; } ];
  }`)+`(let c = host.config; in [ c.networking.hostName c.networking.domain c.services.nixfleet-agent.machineId ])`,
		&dotted); err != nil || strings.Join(dotted, " ") != "web fra.example web.fra.example" {
		t.Errorf("a name with dots gives %q: %v", dotted, err)
	}
	for arguments, want := range map[string]string{
		`{ hostName = "a"; platform = "x86_64-linux"; isVm = true; }`: "isVm = true of host 'a' has no meaning here",
		`{ hostName = "a"; name = "b"; system = "x86_64-linux"; }`: "name and hostName are two names of one argument; " +
			"keep name",
		`{ hostName = "a"; }`:                              `system is missing; write for example system = "x86_64-linux"`,
		`{ platform = "x86_64-linux"; }`:                   `name is missing; write for example name = "web-01"`,
		`{ hostName = "a"; platform = "aarch64-darwin"; }`: "host 'a' is on aarch64-darwin; pass nix-darwin",
	} {
		if err := evaluate(t, fmt.Sprintf(host, arguments)+"host.config.system.stateVersion", nil); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want %q", arguments, err, want)
		}
	}
	// Ours imposes neither a version nor an option.
	var ours []string
	if err := evaluate(t, fmt.Sprintf(host, `{ name = "web-01"; system = "x86_64-linux"; }`)+
		`[ (if host.options ? hostSpec then "hostSpec" else "none") host.config.system.stateVersion ]`, &ours); err != nil ||
		ours[0] != "none" {
		t.Errorf("ours has %q: %v", ours, err)
	}
}

// What init writes is a whole configuration: its hosts, of which the control plane is one,
// evaluate through the flake's own mkHost, without a failed assertion or a warning. The
// operator can log in to each of them. Without keys it says which are missing.
func TestInitTreeEvaluates(t *testing.T) {
	nixpkgsLib(t)
	binary, dir := build(t), t.TempDir()
	tree := filepath.Join(dir, "fleet")
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return string(out)
	}
	const operator = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd jo"
	run("init", tree, "--server", "cp.example.com", "--recipient", operator)
	expression := flake + `let
  nixosSystem = { modules, specialArgs ? { } }: lib.evalModules {
    inherit specialArgs;
    modules = [ parts.nixos { _module.args.pkgs = legacyPackages.x86_64-linux; } ] ++ modules;
  };
  fleet = (import (%s + "/flake.nix")).outputs {
    self = fleet;
    nixpkgs.lib = lib // { inherit nixosSystem; };
    nixfleet = self;
    disko.nixosModules.disko = { options.disko = lib.mkOption { type = lib.types.anything; }; };
  };
in lib.mapAttrs (_: system: parts.render system.config // {
  logins = system.config.users.users.root.openssh.authorizedKeys.keys;
  disk = system.config.disko.devices.disk.main.device;
}) fleet.nixosConfigurations`
	var machines map[string]struct {
		rendered
		Logins []string `json:"logins"`
		Disk   string   `json:"disk"`
	}
	if err := evaluate(t, fmt.Sprintf(expression, tree), &machines); err != nil {
		t.Fatal(err)
	}
	for name, units := range map[string][]string{
		"web-01": {"nixfleet-agent.service", "nixfleet-guard.service"}, "web-02": {"nixfleet-agent.service"},
		"control-plane": {"nixfleet-control-plane.service", "nixfleet-control-plane-credentials.path",
			"nixfleet-agent.service"},
	} {
		m := machines[name]
		if !slices.Equal(m.Logins, []string{operator}) || m.Disk != "/dev/sda" {
			t.Errorf("%s lets in %q, and installs on %s", name, m.Logins, m.Disk)
		}
		if len(m.Failed) > 0 || len(m.Warnings) > 0 {
			t.Errorf("%s: failed %q, warnings %q", name, m.Failed, m.Warnings)
		}
		for _, unit := range units {
			if m.Units[unit] == "" {
				t.Errorf("%s has no %s", name, unit)
			}
		}
	}
	web := machines["web-01"]
	if !strings.Contains(web.Etc["nixfleet/fleet-root.cert.pem"], "BEGIN CERTIFICATE") ||
		!strings.Contains(web.Units["nixfleet-agent.service"], "--machine-id=web-01 ") {
		t.Errorf("web-01: %+v", web)
	}
	bare := filepath.Join(dir, "bare")
	run("init", bare, "--no-keys")
	if err := evaluate(t, fmt.Sprintf(expression, bare), &machines); err != nil {
		t.Fatal(err)
	}
	if failed := strings.Join(machines["web-01"].Failed, "\n"); strings.Count(failed, "\n") != 1 ||
		!strings.Contains(failed, "nixfleet keygen") || !strings.Contains(failed, "operators.nix names no ssh key") {
		t.Errorf("without keys: %q", failed)
	}
}

// The source that the package is built from holds all that the build embeds and that
// its check phase reads.
func TestPackageSourceIsComplete(t *testing.T) {
	nix, lib := testnix.Find(t), nixpkgsLib(t)
	store := nix.NewStore(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	expression := fmt.Sprintf(`let lib = import %s; p = import %s/nixops/package.nix { inherit lib; buildGoModule = attrs: attrs;
		stdenv = { buildPlatform.canExecute = _: true; hostPlatform = null; }; }; in`, lib, root)
	source := nix.Run(t, "nix-instantiate", "--store", store.Dir, "--eval", "--read-write-mode", "--raw", "--expr",
		expression+` "${p.src}"`)
	dir := filepath.Join(t.TempDir(), "source")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(store.Dir, source))); err != nil {
		t.Fatal(err)
	}
	part := func(name string) string {
		return nix.Run(t, "nix-instantiate", "--store", store.Dir, "--eval", "--raw", "--expr", expression+" p."+name)
	}
	out := t.TempDir()
	for _, script := range []string{"go build -o " + out + "/bin/nixfleet .", "out=" + out + "\n" + part("postInstall"),
		"runHook() { :; }\n" + part("checkPhase")} {
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
		cmd.Dir = dir
		cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
			return strings.HasPrefix(v, "NIXFLEET_") || strings.HasPrefix(v, "NIXPKGS_")
		})
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
	for _, file := range []string{
		"man/man1/nixfleet.1", "man/man1/nixfleet-host.1", "man/man5/nixfleet-formats.5", "man/man7/nixfleet-reasons.7",
		"bash-completion/completions/nixfleet", "zsh/site-functions/_nixfleet", "fish/vendor_completions.d/nixfleet.fish",
	} {
		if info, err := os.Stat(filepath.Join(out, "share", file)); err != nil || info.Size() == 0 {
			t.Errorf("the package does not install share/%s: %v", file, err)
		}
	}
}
