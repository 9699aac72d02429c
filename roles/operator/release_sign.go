package operator

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/git"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// signer makes signatures, by a key in this process or by a hook, and believes
// none of them before it has verified it.
type signer struct {
	key       *pki.PrivateKey
	hook      string
	slot      *pki.KeySlot // what the fleet believes; nil when nobody said
	algorithm string       // the label
	cacheKeys []string     // what hosts accept from caches, as the trust file says
	hookOut   *lineWriter
}

// hookPatience bounds one call of the sign hook: a person may have to touch a
// token. A push hook has no bound: the first closure of a host is gigabytes.
const hookPatience = 10 * time.Minute

func newSigner(c *cli.Context) (*signer, error) {
	s := &signer{hook: c.String("sign-cmd"), algorithm: c.String("signature-algorithm"), hookOut: newLineWriter(c, "sign: ")}
	path := c.String("sign-key")
	switch {
	case path != "" && s.hook != "":
		return nil, command.Usage("", "give --sign-key or --sign-cmd (NIXFLEET_SIGN_KEY, NIXFLEET_SIGN_CMD), not both")
	case path == "" && s.hook == "" && !c.Bool("dry-run"):
		return nil, command.Usage("nixfleet keygen release makes a key", "--sign-key or --sign-cmd is missing")
	}
	if path != "" {
		var err error
		if s.key, err = signingKey(path, c.String("identity")); err != nil {
			return nil, err
		}
		if s.algorithm != "" && s.algorithm != s.key.Algorithm() {
			return nil, command.Usage("", "--signature-algorithm %s does not fit the key, which is %s", s.algorithm, s.key.Algorithm())
		}
		s.algorithm = s.key.Algorithm()
		public := s.key.Public()
		s.slot = &pki.KeySlot{Current: &public}
	}
	switch s.algorithm {
	case "":
		s.algorithm = pki.AlgorithmEd25519
	case pki.AlgorithmEd25519, pki.AlgorithmP256:
	default:
		return nil, command.Usage("", "--signature-algorithm must be %s or %s", pki.AlgorithmEd25519, pki.AlgorithmP256)
	}
	trustPath, err := s.knownKeys(c)
	if trustPath == "" || err != nil {
		return s, err
	}
	trust, err := loadTrust(c, trustPath)
	if err != nil {
		return nil, err
	}
	// A release that the fleet's own trust cannot verify would lock it out:
	// found before an hour of building, not after.
	if s.key != nil && !active(&trust.CIReleaseKey, s.key.Public()) {
		return nil, command.Coded(3, command.Hinted(fmt.Errorf("the release key is not in ciReleaseKey of %s: no host would accept the release", trustPath),
			"declare it in nixfleet.trust and deploy that first, signed by the present key: as successor (with retireAt), or as current with the present one as previous"))
	}
	s.slot, s.cacheKeys = &trust.CIReleaseKey, trust.CacheKeys
	return s, nil
}

// knownKeys finds what signatures are verified with: the trust file to load, or a
// key that was given. A hook whose key nobody knows may sign anything.
func (s *signer) knownKeys(c *cli.Context) (trustPath string, err error) {
	public := c.String("public-key")
	switch trustPath = c.String("trust-file"); {
	case public != "" && (trustPath != "" || s.key != nil):
		return "", command.Usage("", "--public-key is for a --sign-cmd without --trust-file")
	case public != "":
		key := pki.PublicKey{Algorithm: s.algorithm, Public: public}
		if !key.Usable() {
			return "", command.Usage("nixfleet derive-pubkey FILE prints it", "--public-key is not the base64 of an %s key", s.algorithm)
		}
		s.slot = &pki.KeySlot{Current: &key}
	case trustPath != "" || s.slot != nil || c.Bool("dry-run"):
	default:
		trustPath = filepath.Join(c.String("build-flake"), trustName)
		if _, err := os.Stat(trustPath); err == nil {
			progress(c, "verifying signatures with %s", trustPath)
			return trustPath, nil
		}
		trustPath = ""
		if !c.Bool("allow-unverified") {
			return "", command.Usage("give --trust-file trust.json (NIXFLEET_TRUST_FILE) or --public-key KEY; --allow-unverified publishes all the same",
				"nothing says with which key --sign-cmd signs: hosts might refuse what it makes")
		}
	}
	return trustPath, nil
}

// trustName is the trust file at the top of a fleet's repository.
const trustName = "trust.json"

// learn takes the keys that hosts will believe from the first system that brings
// them, when nobody said which they are.
func (r *releaser) learn(d *draft) {
	if r.signer.slot != nil || r.c.Bool("dry-run") {
		return
	}
	for _, name := range sortedKeys(d.closures) {
		if trust, err := r.trustOf(d, name); trust != nil && err == nil {
			r.say("verifying signatures with the trust.json that %s brings", name)
			r.signer.slot = &trust.CIReleaseKey
			return
		}
	}
	r.say("warning: nothing says with which key --sign-cmd signs; its signatures are only measured, not verified: give --trust-file")
}

func active(slot *pki.KeySlot, key pki.PublicKey) bool {
	for _, k := range slot.Active(time.Now()) {
		if k == key {
			return true
		}
	}
	return false
}

// sign returns the 64 bytes over canonical, verified.
func (s *signer) sign(ctx context.Context, canonical []byte, what string) ([]byte, error) {
	var sig []byte
	var err error
	if s.key != nil {
		if sig, err = s.key.Sign(canonical); err != nil {
			return nil, fmt.Errorf("sign %s: %w", what, err)
		}
	} else if sig, err = s.callHook(ctx, canonical); err != nil {
		return nil, command.Coded(2, fmt.Errorf("sign %s: %w", what, err))
	}
	if len(sig) != pki.SignatureSize {
		return nil, command.Coded(2, command.Hinted(fmt.Errorf("sign %s: the hook wrote %d bytes, a signature has %d", what, len(sig), pki.SignatureSize),
			"write the raw bytes (R then S for ecdsa-p256) to $NIXFLEET_OUTPUT: no text, no newline, no DER"))
	}
	if s.slot == nil {
		return sig, nil
	}
	for _, k := range s.slot.Active(time.Now()) {
		if k.Verify(canonical, sig) {
			return sig, nil
		}
	}
	return nil, command.Coded(3, command.Hinted(fmt.Errorf("sign %s: the signature does not verify under any release key of the fleet", what),
		"does the hook sign the bytes of $NIXFLEET_INPUT with the key in ciReleaseKey?"))
}

// callHook gives the hook a file to read and an empty one to write.
func (s *signer) callHook(ctx context.Context, canonical []byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "nixfleet-sign-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in, out := filepath.Join(dir, "input"), filepath.Join(dir, "output")
	if err := os.WriteFile(in, canonical, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(out, nil, 0o600); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, hookPatience)
	defer stop()
	if err := runHook(ctx, s.hook, s.hookOut, "NIXFLEET_INPUT="+in, "NIXFLEET_OUTPUT="+out); err != nil {
		return nil, err
	}
	return readFile(out, smallFile)
}

// runHook runs a hook as v1 does: sh -c, standard input closed. Its output is
// the operator's to read; standard output of ours stays clean. The hook works in our
// directory, so a git in it must not work in the repository of a git hook around us.
func runHook(ctx context.Context, command string, out *lineWriter, env ...string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(git.Environ(os.Environ()), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	out.end()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("hook %q: %w", firstLine(command), err)
	}
	return nil
}

func firstLine(s string) string {
	line, _, more := strings.Cut(strings.TrimSpace(s), "\n")
	if more {
		line += " …"
	}
	return line
}

// lineWriter passes whole lines on, each with a prefix, so that what parallel
// builds say does not mix; with --log-format json each as an object.
type lineWriter struct {
	w      io.Writer
	prefix string
	json   bool
	mu     sync.Mutex
	rest   []byte
}

func newLineWriter(c *cli.Context, prefix string) *lineWriter {
	return &lineWriter{w: c.App.ErrWriter, prefix: prefix, json: c.String("log-format") == "json"}
}

// format is a whole line, with its end, as it is passed on.
func (l *lineWriter) format(line []byte) []byte {
	text := append([]byte(l.prefix), line...)
	if !l.json {
		return text
	}
	level, message := "info", strings.ToValidUTF8(strings.TrimSpace(string(text)), "?")
	if rest, ok := strings.CutPrefix(message, "warning: "); ok {
		level, message = "warn", rest
	}
	doc, err := pki.Marshal(map[string]string{"level": level, "time": pki.At(time.Now().Truncate(time.Second)).String(), "message": message})
	if err != nil {
		return text
	}
	return append(doc, '\n')
}

// end passes on a last line that has no end of its own.
func (l *lineWriter) end() {
	l.mu.Lock()
	unfinished := len(l.rest) > 0
	l.mu.Unlock()
	if unfinished {
		l.Write([]byte{'\n'})
	}
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if _, err := l.w.Write(l.format(l.rest[:i+1])); err != nil {
			return 0, err
		}
		l.rest = l.rest[i+1:]
	}
}
