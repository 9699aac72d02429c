package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// standInNixpkgs stands in for nixpkgs, which these machines cannot fetch: as much of
// its lib as nixfleet's flake needs, and a nixosSystem whose closure is built by
// /bin/sh from the text of the host's modules. What it leaves out is the module
// system; nixops/modules covers that.
const standInNixpkgs = `{
  outputs = { self }: {
    lib = {
      inherit (builtins) elem filter;
      hasSuffix = suffix: text: builtins.match ".*${suffix}" text != null;
      optionalAttrs = cond: set: if cond then set else { };
      genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
      nixosSystem =
        { modules, specialArgs ? { } }:
        let
          named = (builtins.head modules) { lib.mkDefault = value: value; };
          name = named.networking.hostName;
          system = named.nixpkgs.hostPlatform;
          text = builtins.concatStringsSep "" (map (m: if builtins.isPath m then builtins.readFile m else "") modules);
          derive = name: env: script: derivation ({
            inherit name system;
            builder = "/bin/sh";
            PATH = "/usr/bin:/bin";
            args = [ "-c" script ];
          } // env);
        in
        {
          config.system.build.toplevel = derive "nixos-system-${name}" {
            inherit text;
            model = builtins.readFile ./switch-to-configuration;
            etc = derive "etc-${name}" { inherit text; } "mkdir $out; printf %s \"$text\" >$out/issue";
          } "mkdir -p $out/bin; printf '%s\n' \"$model\" >$out/bin/switch-to-configuration; chmod 755 $out/bin/switch-to-configuration; ln -s $etc $out/etc; printf %s \"$text\" >$out/nixos-version";
        };
    };
  };
}
`

// standInDisko stands in for disko: the name of its module.
const standInDisko = `{
  inputs.nixpkgs.url = "nixpkgs";
  outputs = { self, nixpkgs }: { nixosModules.disko = { }; };
}
`

// TestInitToFirstRollout takes a newcomer's way: what `nixfleet init` writes, and
// the commands of its README, word for word but for the addresses.
func TestInitToFirstRollout(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("age"); err != nil {
		t.Skip("age is not installed")
	}
	f := bareNixFleet(t)
	f.sshIdentity()
	nixpkgs, source := f.inputs()
	disko := filepath.Join(f.dir, "disko")
	f.write(filepath.Join(disko, "flake.nix"), standInDisko, 0o644)
	forge := filepath.Join(f.dir, "forge.git")
	f.git("init", "--quiet", "--bare", "--initial-branch=main", forge)
	out := f.mustRun(f.dir, "init", f.checkout(""), "--server", "127.0.0.1", "--suffix", nixSuffix, "--cache-url",
		f.cache.URL,
		"--source-url", "git+file://"+forge+"#main", "--nixfleet-url", "path:"+source, "--nixpkgs-url", "path:"+nixpkgs,
		"--disko-url", "path:"+disko)
	if !strings.Contains(out, "next, in "+f.checkout("")) {
		t.Errorf("init says no next step:\n%s", out)
	}
	f.git("-C", f.checkout(""), "remote", "add", "origin", forge)

	f.prepareHosts("control-plane", "web-01", "web-02")
	f.shell(f.readme("Commit:"))
	f.install("control-plane", "web-01", "web-02")
	f.shell(strings.ReplaceAll(f.readme("## The first release"), "ssh-ng://root@127.0.0.1", "'"+f.cacheDest()+"'"))

	f.takeKeys()
	f.connect()
	f.startControlPlane()
	f.until("the control plane has accepted the first release", func() string {
		view, err := f.client.Hosts(f.t.Context())
		switch {
		case err != nil:
			return err.Error()
		case len(view.Hosts) != 3:
			return fmt.Sprintf("%d hosts", len(view.Hosts))
		}
		return ""
	})
	for _, h := range f.hosts {
		f.startAgent(h)
	}
	f.converged("web-01", "web-02", "control-plane")
	watching, _, _ := strings.Cut(f.readme("## Watching"), "nixfleet rollout watch")
	f.shell(strings.ReplaceAll(watching, "https://127.0.0.1:8080", "https://"+f.address))

	// From now on CI does it, with the job that init wrote.
	f.write(f.checkout("hosts/web-01.nix"), "{ services.nginx.enable = true; services.openssh.enable = true; }\n", 0o644)
	f.shell("git commit --quiet --all --message 'feat: change web-01'; git push --quiet origin HEAD:main")
	before := f.declared("web-01")
	job := f.job()
	job()
	if f.declared("web-01") == before {
		t.Error("the job has released nothing new")
	}
	f.converged("web-01", "web-02")
	signed := f.signedAt()
	job("--resign")
	if f.signedAt() == signed {
		t.Error("the job has not renewed the signature")
	}
}

// TestNixFlakeInitGivesTheTree: the template of the flake is the tree of init without
// its keys, hidden files included. (Nix makes none of them executable.)
func TestNixFlakeInitGivesTheTree(t *testing.T) {
	t.Parallel()
	f := bareNixFleet(t)
	nixpkgs, source := f.inputs()
	flake, err := os.ReadFile(filepath.Join(source, "flake.nix"))
	if err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(source, "flake.nix"),
		strings.Replace(string(flake), "github:NixOS/nixpkgs/nixos-unstable", "path:"+nixpkgs, 1), 0o644)
	absolute, err := filepath.Abs("../../nixops/template/fleet")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(source, "nixops/template/fleet")); err != nil {
		t.Fatal(err)
	}
	f.command(f.dir, "cp", "-a", absolute, filepath.Join(source, "nixops/template/fleet"))
	if err := os.Mkdir(f.checkout(""), 0o755); err != nil {
		t.Fatal(err)
	}
	f.command(f.checkout(""), filepath.Join(f.nix.Bin(), "nix"), "flake", "init", "--template", "path:"+source+"#fleet")
	if out := f.command(f.dir, "diff", "--recursive", absolute, f.checkout("")); out != "" {
		t.Error(out)
	}
}

// sshIdentity gives the operator an ssh key, which init finds.
func (f *nixFleet) sshIdentity() {
	f.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		f.t.Fatal(err)
	}
	private, err := key.MarshalOpenSSH("jo")
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(filepath.Join(f.dir, ".ssh/id_ed25519"), string(private), 0o600)
	f.write(filepath.Join(f.dir, ".ssh/id_ed25519.pub"),
		pki.FormatHostKey(key.Crypto().Public().(ed25519.PublicKey), "jo")+"\n", 0o644)
}

// inputs makes the flakes that the fleet's own takes as nixpkgs and nixfleet: a
// stand-in for the one, and of the other all that Nix reads.
func (f *nixFleet) inputs() (nixpkgs, source string) {
	f.t.Helper()
	nixpkgs, source = filepath.Join(f.dir, "nixpkgs"), filepath.Join(f.dir, "nixfleet-source")
	model, err := os.ReadFile("../../nixops/testnix/model.sh")
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(filepath.Join(nixpkgs, "flake.nix"), standInNixpkgs, 0o644)
	f.write(filepath.Join(nixpkgs, "switch-to-configuration"), string(model), 0o755)
	for _, part := range []string{"flake.nix", "nixops", "pki", "roles"} {
		err := filepath.WalkDir(filepath.Join("../..", part), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".nix") {
				return err
			}
			text, err := os.ReadFile(path)
			if err == nil {
				f.write(filepath.Join(source, strings.TrimPrefix(filepath.ToSlash(path), "../../")), string(text), 0o644)
			}
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return nixpkgs, source
}

// readme is the first block of commands after a text of the tree's README.
func (f *nixFleet) readme(after string) string {
	f.t.Helper()
	text, err := os.ReadFile(f.checkout("README.md"))
	if err != nil {
		f.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), after)
	if !ok {
		f.t.Fatalf("README.md has no %q", after)
	}
	var block strings.Builder
	for line := range strings.Lines(strings.TrimLeft(rest, "\n")) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "    ") {
			break
		}
		block.WriteString(strings.TrimSpace(line) + "\n")
	}
	return block.String()
}

// shell runs commands as an operator types them, in the checkout.
func (f *nixFleet) shell(script string, env ...string) {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), "sh", "-euc", script)
	cmd.Dir = f.checkout("")
	cmd.Env = append(f.environment(), env...)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(binary)+":"+f.nix.Bin()+":"+os.Getenv("PATH"),
		"GIT_AUTHOR_NAME=jo", "GIT_AUTHOR_EMAIL=jo@fleet.test", "GIT_COMMITTER_NAME=jo", "GIT_COMMITTER_EMAIL=jo@fleet.test")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		f.t.Fatalf("%s: %v\n%s", script, err, said.String())
	}
}

// prepareHosts runs the README's loop, whose result flake.nix reads by itself, and shortens
// what a test cannot wait for.
func (f *nixFleet) prepareHosts(names ...string) {
	f.t.Helper()
	loop := f.readme("flake.nix` reads it from `secrets/`.")
	if !strings.HasPrefix(loop, "for host in "+strings.Join(names, " ")+"; do\n") {
		f.t.Fatalf("README.md prepares other hosts:\n%s", loop)
	}
	f.shell(loop)
	file := f.checkout("fleet.nix")
	text, err := os.ReadFile(file)
	if err != nil {
		f.t.Fatal(err)
	}
	declaration := string(text)
	if !strings.Contains(declaration, "soakMinutes = 30;") {
		f.t.Fatal("fleet.nix has no canary that soaks")
	}
	declaration = strings.Replace(declaration, "soakMinutes = 30;", "soakSeconds = 1;", 1)
	declaration = strings.ReplaceAll(declaration, "x86_64-linux",
		map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH])
	f.write(file, declaration, 0o644)
}

// install runs install.sh with a stand-in for nixos-anywhere, which keeps what would be
// copied to the machine, and takes host key and token from there.
func (f *nixFleet) install(names ...string) {
	f.t.Helper()
	installer := filepath.Join(f.dir, "nixos-anywhere")
	f.write(installer, "#!/bin/sh\n"+`test "$1 $3 $5" = "--extra-files --flake root@10.0.0.1" || { echo "$*"; exit 1; }
cp -a "$2" "$MACHINES/${4#.#}"
`, 0o755)
	machines, temporary := filepath.Join(f.dir, "machines"), filepath.Join(f.dir, "temporary")
	for _, dir := range []string{machines, temporary} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	modes := map[string]fs.FileMode{
		"etc/ssh": 0o755, "etc/ssh/ssh_host_ed25519_key": 0o600, "etc/ssh/ssh_host_ed25519_key.pub": 0o600,
		"var/lib/nixfleet": 0o700, "var/lib/nixfleet/bootstrap-token.age": 0o600,
	}
	keys := map[string]fs.FileMode{
		"var/lib/nixfleet-keys": 0o700, "var/lib/nixfleet-keys/server.key.pem": 0o600,
		"var/lib/nixfleet-keys/issuing-ca.key.pem": 0o600,
		"var/lib/nixfleet-keys/server.cert.pem":    0o600, "var/lib/nixfleet-keys/client-ca.pem": 0o600,
		"var/lib/nixfleet-keys/issuing-ca.cert.pem": 0o600,
	}
	for _, name := range names {
		f.shell("sh install.sh "+name+" root@10.0.0.1", "NIXOS_ANYWHERE="+installer, "MACHINES="+machines,
			"TMPDIR="+temporary)
		machine := filepath.Join(machines, name)
		for path, want := range modes {
			f.mode(filepath.Join(machine, path), want)
		}
		for path, want := range keys {
			if name != "control-plane" {
				want = 0
			}
			f.mode(filepath.Join(machine, path), want)
		}
		h := f.installed(name)
		f.shell(
			fmt.Sprintf(
				"umask 077; mkdir -p %[2]s; cp %[1]s/var/lib/nixfleet/bootstrap-token.age %[2]s/token.json; cp "+
					"%[1]s/etc/ssh/ssh_host_ed25519_key %[2]s/",
				machine, h.dir))
		f.hosts[name] = h
	}
	for _, wrong := range []string{"sh install.sh web-01", "sh install.sh web-99 root@10.0.0.1"} {
		f.shell("! NIXOS_ANYWHERE=false " + wrong)
	}
	// No key stays behind.
	if left, err := os.ReadDir(temporary); err != nil || len(left) != 0 {
		f.t.Errorf("install.sh leaves %v, %v", left, err)
	}
}

// mode wants a file of that mode, or none where the mode is 0.
func (f *nixFleet) mode(path string, want fs.FileMode) {
	f.t.Helper()
	info, err := os.Lstat(path)
	switch {
	case want == 0 && os.IsNotExist(err):
	case err != nil || want == 0:
		f.t.Errorf("%s: %v, want mode %o", path, err, want)
	case info.Mode().Perm() != want:
		f.t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
	}
}

// takeKeys opens the keys of the tree, as the README has it, to where the rest of
// the suite looks for them.
func (f *nixFleet) takeKeys() {
	f.t.Helper()
	f.shell("umask 077; mkdir -p " + f.key("") + `
for f in secrets/*.age; do age -d -i ~/.ssh/id_ed25519 $f >` + f.key("") + `/$(basename $f .age); done
cp secrets/*.pem trust.json ` + f.key(""))
}

// job is the forge's job in a fresh clone, as CI runs it; the checkout then takes over what
// the job has pushed.
func (f *nixFleet) job() func(args ...string) {
	read := func(name string) string {
		text, err := os.ReadFile(f.key(name))
		if err != nil {
			f.t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	return func(args ...string) {
		f.t.Helper()
		// As the README has it for a release, and as it stands in the file for a renewal.
		key := read("release.key")
		if len(args) == 0 {
			key = base64.StdEncoding.EncodeToString([]byte(key + "\n"))
		}
		f.shell("git clone --quiet --branch main "+filepath.Join(f.dir, "forge.git")+
			" ../job && cd ../job && sh ci/release.sh "+strings.Join(args, " ")+
			" && cd .. && rm -rf job && git -C fleet pull --quiet --ff-only origin main",
			"RELEASE_KEY="+key, "CACHE_KEY="+read("cache.key"), "COPY_TO="+f.cacheDest(), "NIXFLEET="+binary)
	}
}

// signedAt is when the release in the checkout was signed.
func (f *nixFleet) signedAt() string {
	f.t.Helper()
	var doc struct {
		Meta struct {
			SignedAt string `json:"signedAt"`
		} `json:"meta"`
	}
	data, err := os.ReadFile(f.checkout("releases/fleet.resolved.json"))
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return doc.Meta.SignedAt
}
