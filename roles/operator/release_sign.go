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

	"nixfleet/pki"
)

// signer makes signatures, by a key in this process or by a hook, and believes
// none of them before it has verified it.
type signer struct {
	key       *pki.PrivateKey
	hook      string
	slot      *pki.KeySlot // what the fleet believes; nil when nobody said
	algorithm string       // the label
	hookOut   *lineWriter
}

// hookPatience bounds one call of a hook: a person may have to touch a token.
const hookPatience = 10 * time.Minute

func newSigner(c *cli.Context) (*signer, error) {
	s := &signer{hook: c.String("sign-cmd"), algorithm: c.String("signature-algorithm"), hookOut: &lineWriter{w: c.App.ErrWriter, prefix: "sign: "}}
	path := c.String("sign-key")
	switch {
	case path != "" && s.hook != "":
		return nil, usage("", "give --sign-key or --sign-cmd (NIXFLEET_SIGN_KEY, NIXFLEET_SIGN_CMD), not both")
	case path == "" && s.hook == "" && !c.Bool("dry-run"):
		return nil, usage("nixfleet keygen release makes a key", "--sign-key or --sign-cmd is missing")
	}
	if path != "" {
		var err error
		if s.key, err = signingKey(path, c.String("identity")); err != nil {
			return nil, err
		}
		if s.algorithm != "" && s.algorithm != s.key.Algorithm() {
			return nil, usage("", "--signature-algorithm %s does not fit the key, which is %s", s.algorithm, s.key.Algorithm())
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
		return nil, usage("", "--signature-algorithm must be %s or %s", pki.AlgorithmEd25519, pki.AlgorithmP256)
	}
	trustPath := c.String("trust-file")
	if trustPath == "" {
		if s.slot == nil && !c.Bool("dry-run") {
			progress(c, "warning: without --trust-file the hook's signatures are only measured, not verified")
		}
		return s, nil
	}
	trust, err := loadTrust(c, trustPath)
	if err != nil {
		return nil, err
	}
	// A release that the fleet's own trust cannot verify would lock it out:
	// found before an hour of building, not after.
	if s.key != nil && !active(&trust.CIReleaseKey, s.key.Public()) {
		return nil, coded(3, hinted(fmt.Errorf("the release key is not in ciReleaseKey of %s: no host would accept the release", trustPath),
			"declare it in nixfleet.trust and deploy that first, signed by the present key: as successor (with retireAt), or as current with the present one as previous"))
	}
	s.slot = &trust.CIReleaseKey
	return s, nil
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
		return nil, coded(2, fmt.Errorf("sign %s: %w", what, err))
	}
	if len(sig) != pki.SignatureSize {
		return nil, coded(2, hinted(fmt.Errorf("sign %s: the hook wrote %d bytes, a signature has %d", what, len(sig), pki.SignatureSize),
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
	return nil, coded(3, hinted(fmt.Errorf("sign %s: the signature does not verify under any release key of the fleet", what),
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
	if err := runHook(ctx, s.hook, s.hookOut, "NIXFLEET_INPUT="+in, "NIXFLEET_OUTPUT="+out); err != nil {
		return nil, err
	}
	return readFile(out, smallFile)
}

// runHook runs a hook as v1 does: sh -c, standard input closed. Its output is
// the operator's to read; standard output of ours stays clean.
func runHook(ctx context.Context, command string, out *lineWriter, env ...string) error {
	ctx, stop := context.WithTimeout(ctx, hookPatience)
	defer stop()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), env...)
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
// builds say does not mix.
type lineWriter struct {
	w      io.Writer
	prefix string
	mu     sync.Mutex
	rest   []byte
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
		if _, err := l.w.Write(append([]byte(l.prefix), l.rest[:i+1]...)); err != nil {
			return 0, err
		}
		l.rest = l.rest[i+1:]
	}
}
