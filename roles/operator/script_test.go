package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// nixfleet is the executable as far as the operator's verbs go.
func nixfleet(prefix ...string) func() {
	return func() {
		cp := &cli.Command{Name: "cp", Usage: "control plane", Subcommands: []*cli.Command{PokeCommand()}}
		app := command.App("test", append(Commands(Roles{}, nil), cp)...)
		os.Exit(command.Run(context.Background(), app, append(append([]string{"nixfleet"}, prefix...), os.Args[1:]...)))
	}
}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"nixfleet":                 nixfleet(),
		"nixfleet-release":         nixfleet("release", "--allow-unverified"),
		"nixfleet-verify-artifact": nixfleet("verify", "--all-required"),
		"nixfleet-canonicalize":    nixfleet("canonicalize"),
		"sign-with":                signWith,
	})
}

// signWith is a sign hook, as a person writes one: it signs the input with the key
// in the file that is named.
func signWith() {
	err := func() error {
		key, err := pki.ReadPrivateKey(os.Args[1])
		if err != nil {
			return err
		}
		input, err := os.ReadFile(os.Getenv("NIXFLEET_INPUT"))
		if err != nil {
			return err
		}
		sig, err := key.Sign(input)
		if err != nil {
			return err
		}
		return os.WriteFile(os.Getenv("NIXFLEET_OUTPUT"), sig, 0o600)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestScripts runs what people type: the actors operator, host and attacker
// are directories of their own, and what passes between them passes as files.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("USER", "jo")
			env.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(home, ".gitconfig"))
			env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			for _, who := range []string{"AUTHOR", "COMMITTER"} {
				env.Setenv("GIT_"+who+"_NAME", "jo")
				env.Setenv("GIT_"+who+"_EMAIL", "jo@example.com")
			}
			if err := os.MkdirAll(home, 0o700); err != nil {
				return err
			}
			if strings.Contains(filepath.Base(env.WorkDir), "online") {
				if err := startControlPlane(env); err != nil {
					return err
				}
			}
			return artifactExamples(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"mode":    mode,
			"capture": capture,
			"tamper":  tamper,
		},
		Condition: func(cond string) (bool, error) {
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// exits CODE PROGRAM [ARG...]: the exit code is part of what scripts rely on.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var failed *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &failed):
		got = failed.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s exited with %d, want %d\n%s%s", args[1], got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// mode OCTAL FILE...: who may read a file.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); (got == args[0]) == neg {
			ts.Fatalf("%s has mode %s", name, got)
		}
	}
}

// capture NAME: the last standard output, without its last newline, as variable.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile("stdout")
	for len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	ts.Setenv(args[0], text)
}

// tamper FILE OLD NEW: one edit, as an attacker makes it.
func tamper(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	before := ts.ReadFile(args[0])
	after := strings.Replace(before, args[1], args[2], 1)
	if before == after {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(path, []byte(after), 0o644))
}

// artifactExamples puts the worked examples of the contract, signed with its
// throw-away keys, into the directory of each script.
func artifactExamples(dir string) error {
	for name, body := range exampleArtifacts {
		canonical, err := pki.Canonicalize([]byte(body))
		if err != nil {
			return fmt.Errorf("example %s: %w", name, err)
		}
		sig, err := exampleSignature(name)
		if err != nil {
			return err
		}
		for file, data := range map[string][]byte{name: canonical, name + ".sig": sig} {
			path := filepath.Join(dir, "examples", file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, "examples", "trust.json"), []byte(exampleTrust), 0o644)
}
