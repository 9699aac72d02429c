package modules

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// units are the committed units of all configurations, by their path.
func units(t testing.TB, kind string) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/rendered/*/*." + kind)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s units: %v", kind, err)
	}
	return paths
}

func systemdAnalyze(t testing.TB, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "SYSTEMD_COLORS=0")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ceiling is the worst exposure that a unit may have, in tenths, as
// systemd-analyze scores it. The agent and its guard must be root with all
// capabilities: they set profiles, write the boot loader and start units.
var ceiling = map[string]int{
	"nixfleet-control-plane.service":             20,
	"nixfleet-control-plane-credentials.service": 20,
	"nixfleet-agent.service":                     65,
	"nixfleet-guard.service":                     65,
	"nixfleet-boot-complete.service":             65,
}

func TestUnitsAreHardened(t *testing.T) {
	for _, unit := range units(t, "service") {
		t.Run(strings.TrimPrefix(unit, "testdata/rendered/"), func(t *testing.T) {
			limit, ok := ceiling[filepath.Base(unit)]
			if !ok {
				t.Fatalf("no ceiling is set for %s", unit)
			}
			out, err := systemdAnalyze(t, "security", "--no-pager", "--offline=true", fmt.Sprintf("--threshold=%d", limit), unit)
			if err != nil {
				t.Errorf("exposure is above %d.%d: %v\n%s", limit/10, limit%10, err, out)
			}
			_, level, _ := strings.Cut(out, "Overall exposure level")
			t.Log(strings.TrimSpace(level))
		})
	}
}

var (
	storePath = regexp.MustCompile(`/nix/store/0{32}-[a-z-]+/bin/[a-z-]+`)
	preStart  = regexp.MustCompile(`/nix/store/0{32}-unit-script-pre-start`)
)

// systemd itself reads every unit and knows every word in it.
func TestUnitsAreUnderstoodBySystemd(t *testing.T) {
	for _, kind := range []string{"service", "path"} {
		for _, unit := range units(t, kind) {
			t.Run(strings.TrimPrefix(unit, "testdata/rendered/"), func(t *testing.T) {
				// Side by side, since a path unit needs its service; with a command that exists.
				dir := t.TempDir()
				for _, kind := range []string{"service", "path"} {
					siblings, err := filepath.Glob(filepath.Join(filepath.Dir(unit), "*."+kind))
					if err != nil {
						t.Fatal(err)
					}
					for _, sibling := range siblings {
						text, err := os.ReadFile(sibling)
						if err != nil {
							t.Fatal(err)
						}
						text = preStart.ReplaceAll(storePath.ReplaceAll(text, []byte("/bin/true")), []byte("/bin/true"))
						if err := os.WriteFile(filepath.Join(dir, filepath.Base(sibling)), text, 0o644); err != nil {
							t.Fatal(err)
						}
					}
				}
				out, err := systemdAnalyze(t, "verify", "--man=no", "--recursive-errors=no",
					filepath.Join(dir, filepath.Base(unit)))
				if err != nil || strings.Contains(out, dir) {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// split reads a command line as systemd does: words, "quotes" with C escapes,
// %% and $$. Other specifiers are left as they stand.
func split(t testing.TB, line string) []string {
	t.Helper()
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		var word string
		if line[0] == '"' {
			end := 1
			for end < len(line) && line[end] != '"' {
				if line[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(line) {
				t.Fatalf("unclosed quote: %s", line)
			}
			word = strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\n`, "\n").Replace(line[1:end])
			line = line[end+1:]
		} else {
			word, line, _ = strings.Cut(line, " ")
		}
		words = append(words, strings.NewReplacer("%%", "%", "$$", "$").Replace(word))
	}
	return words
}

// execStart is the command of a committed unit.
func execStart(t testing.TB, unit string) []string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\nExecStart=")
	if !ok {
		t.Fatalf("%s has no ExecStart", unit)
	}
	line, _, _ := strings.Cut(rest, "\n")
	return split(t, line)
}

// build makes the executable.
func build(t testing.TB) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "nixfleet")
	if out, err := exec.Command("go", "build", "-o", binary, "nixfleet").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// credentials are what `nixfleet keygen all` makes, under the names that the
// control plane's unit gives them.
var credentials = map[string]string{
	"tls-cert": "server.cert.pem", "tls-key": "server.key.pem", "client-ca": "client-ca.pem",
	"fleet-ca-cert": "issuing-ca.cert.pem", "fleet-ca-key": "issuing-ca.key.pem",
	"source-ssh-key": "release.key", "source-token": "token", "webhook-token": "token", "channel-refs-token": "token",
	"rollouts-source-token": "token", "notify-webhook-secret": "token", "notify-alertmanager-token": "token",
	"notify-mail-password": "token",
}

// The executable reads every command line of a unit, and with it the trust.json
// and health-checks.json that the modules write [T10].
func TestExecStartIsAcceptedByTheExecutable_T10(t *testing.T) {
	binary := build(t)
	keys := t.TempDir()
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + keys}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run(t, "keygen", "all", "--dir", keys, "--suffix", "fleet.example.com", "--server", "cp.example.com")
	if err := os.WriteFile(filepath.Join(keys, "token"), []byte("a-token-of-the-forge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := map[string][]string{}
	for _, unit := range units(t, "service") {
		if args := execStart(t, unit); !strings.HasSuffix(args[0], "/systemctl") {
			lines[unit] = args
		}
	}
	for _, name := range configurations(t) {
		for daemon, args := range daemons(t, name) {
			lines[filepath.Join(renderedDir(name), daemon)] = args
		}
	}
	for unit, args := range lines {
		t.Run(strings.TrimPrefix(unit, "testdata/rendered/"), func(t *testing.T) {
			if filepath.Base(args[0]) != "nixfleet" {
				t.Fatalf("it runs %q", args)
			}
			etc := t.TempDir()
			for i, arg := range args {
				flag, value, given := strings.Cut(arg, "=")
				if !given {
					continue
				}
				if name, ok := strings.CutPrefix(value, "%d/"); ok {
					value = filepath.Join(keys, credentials[name])
				}
				switch flag {
				case "--trust-file", "--health-checks-config":
					text, err := os.ReadFile(filepath.Join(filepath.Dir(unit), value))
					if err != nil {
						t.Fatalf("what %s names is not written by the module: %v", flag, err)
					}
					// A trust file that others could write is refused, as a checkout's may be.
					value = filepath.Join(etc, filepath.Base(value))
					if err := os.WriteFile(value, text, 0o600); err != nil {
						t.Fatal(err)
					}
				case "--ca-cert":
					value = filepath.Join(keys, "fleet-root.cert.pem")
				case "--client-key", "--ssh-host-key-file":
					value = filepath.Join(keys, "release.key")
				case "--tpm-ca-pubkey-raw":
					value = rawKey(t, keys)
				}
				args[i] = flag + "=" + value
			}
			out := run(t, append(args[1:], "--check-config")...)
			if !strings.Contains(out, "configuration is good") {
				t.Errorf("it says %q", out)
			}
		})
	}
}

// daemons are the command lines of launchd's daemons in a configuration, without the
// shell that waits for the store before it becomes each of them.
func daemons(t testing.TB, name string) map[string][]string {
	t.Helper()
	var r struct {
		Daemons map[string]struct{ ProgramArguments []string } `json:"daemons"`
	}
	text, err := os.ReadFile(filepath.Join(renderedDir(name), "rest.json"))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string][]string{}
	for daemon, d := range r.Daemons {
		rest := d.ProgramArguments
		if len(rest) < 5 || !slices.Equal(rest[:3], []string{"/bin/sh", "-c", `/bin/wait4path /nix/store && exec "$@"`}) {
			t.Fatalf("%s does not wait for the volume of the store: %q", daemon, rest)
		}
		lines[daemon] = rest[4:]
	}
	return lines
}

// Every key of trust.json that the module writes is one that the executable
// reads, so that nothing of it is silently empty [T10].
func TestTrustIsReadAsItIsWritten_T10(t *testing.T) {
	paths, err := filepath.Glob("testdata/rendered/*/etc/nixfleet/*/trust.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no trust.json: %v", err)
	}
	for _, path := range paths {
		trust, _, err := pki.LoadTrust(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if trust.CIReleaseKey.Current == nil || trust.OrgRootKey == nil || trust.OrgRootKey.Current == nil ||
			len(trust.CacheKeys) == 0 {
			t.Errorf("%s is read as %+v", path, trust)
		}
	}
	full, _, err := pki.LoadTrust("testdata/rendered/agent-full/etc/nixfleet/agent/trust.json")
	if err != nil {
		t.Fatal(err)
	}
	ci, org := full.CIReleaseKey, full.OrgRootKey
	switch {
	case ci.Previous == nil || ci.Previous.Algorithm != pki.AlgorithmP256:
		t.Errorf("previous is %+v", ci.Previous)
	case ci.Successor == nil || ci.RetireAt == nil || ci.RetireAt.String() != "2027-01-01T00:00:00Z":
		t.Errorf("successor is %+v until %v", ci.Successor, ci.RetireAt)
	case ci.RejectBefore == nil || org.RejectBefore == nil || org.Previous == nil:
		t.Errorf("rejectBefore or previous is lost: %+v, %+v", ci, org)
	case full.RootCAPEM == nil || !strings.Contains(*full.RootCAPEM, "\nMIIBtTCCAVugAwIBAgIU") ||
		len(full.IssuanceCAPEMs) != 1:
		t.Errorf("the CAs are %v and %v", full.RootCAPEM, full.IssuanceCAPEMs)
	}
}

// What stopping the agent must not take away, and what no unit may name.
func TestUnitsLeaveRunningSwitchesAlone(t *testing.T) {
	for _, unit := range units(t, "service") {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "RuntimeDirectory=") {
			t.Errorf("%s has a RuntimeDirectory, which is removed when the service stops", unit)
		}
		if filepath.Base(unit) == "nixfleet-agent.service" && !strings.Contains(string(text), "X-StopIfChanged=false") {
			t.Errorf("%s would be stopped at the beginning of the switch that it drives", unit)
		}
	}
}

// An agent holds what it read at its start, so that what restarts it names each of its
// configuration files: another trust.json or other probes are another unit [A16].
func TestConfigurationFilesRestartTheAgent_A16(t *testing.T) {
	triggers := map[string]bool{}
	for _, name := range []string{"agent", "agent-full"} {
		text, err := os.ReadFile(filepath.Join(renderedDir(name), "nixfleet-agent.service"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(text), "\nX-Restart-Triggers=")
		if !ok {
			t.Fatalf("nothing restarts the agent of %s", name)
		}
		line, _, _ := strings.Cut(rest, "\n")
		triggers[line] = true
		if strings.Contains(string(text), "X-RestartIfChanged=false") {
			t.Errorf("the agent of %s is not restarted", name)
		}
	}
	if len(triggers) != 2 {
		t.Errorf("two configurations have the triggers %v", triggers)
	}
}

// rawKey is the public half of the issuing CA as a TPM's wrapper hands it out:
// the 64 bytes X and Y.
func rawKey(t testing.TB, keys string) string {
	t.Helper()
	cert := readCertificate(t, filepath.Join(keys, "issuing-ca.cert.pem"))
	path := filepath.Join(keys, "issuing-ca.pub.raw")
	if err := os.WriteFile(path, cert, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// readCertificate gives the bytes X and Y of a certificate's P-256 key.
func readCertificate(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	point, err := cert.PublicKey.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return point[1:]
}

// With ProcSubset=pid Go cannot read net.core.somaxconn, and lets 128 connections wait to
// be accepted instead of thousands.
func TestControlPlaneReadsHowManyMayWait(t *testing.T) {
	for _, unit := range units(t, "service") {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(unit) == "nixfleet-control-plane.service" && strings.Contains(string(text), "ProcSubset=pid") {
			t.Errorf("%s hides /proc/sys", unit)
		}
	}
}
