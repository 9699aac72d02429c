package release

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

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

func (r *releaser) newSigner() (*signer, error) {
	cfg := r.cfg.Signing
	s := &signer{hook: cfg.Hook, algorithm: cfg.Algorithm, hookOut: newLineWriter(r.cfg.Progress, r.cfg.JSONProgress,
		"sign: ")}
	switch {
	case cfg.KeyFile != "" && s.hook != "":
		return nil, command.Usage("", "give --sign-key or --sign-cmd (NIXFLEET_SIGN_KEY, NIXFLEET_SIGN_CMD), not both")
	case cfg.KeyFile == "" && s.hook == "" && !r.cfg.DryRun:
		return nil, command.Usage("nixfleet keygen release makes a key", "--sign-key or --sign-cmd is missing")
	}
	if cfg.KeyFile != "" {
		var err error
		if s.key, err = r.cfg.Keys.SigningKey(cfg.KeyFile); err != nil {
			return nil, err
		}
		if s.algorithm != "" && s.algorithm != s.key.Algorithm() {
			return nil, command.Usage("", "--signature-algorithm %s does not fit the key, which is %s", s.algorithm,
				s.key.Algorithm())
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
	trustPath, err := r.knownKeys(s)
	if trustPath == "" || err != nil {
		return s, err
	}
	trust, warnings, err := r.cfg.Keys.Trust(trustPath)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		r.say("warning: %s", w)
	}
	// A release that the fleet's own trust cannot verify would lock it out: found before an hour of building, not after.
	if s.key != nil && !slices.Contains(trust.CIReleaseKey.Active(time.Now()), s.key.Public()) {
		err := fmt.Errorf("the release key is not in ciReleaseKey of %s: no host would accept the release", trustPath)
		return nil, command.Coded(3, command.Hinted(err,
			"declare it in nixfleet.trust and deploy that first, signed by the present key: "+
				"as successor (with retireAt), or as current with the present one as previous"))
	}
	s.slot, s.cacheKeys = &trust.CIReleaseKey, trust.CacheKeys
	return s, nil
}

// knownKeys finds what signatures are verified with: the trust file to load, or a key that was given. A hook whose key
// nobody knows may sign anything.
func (r *releaser) knownKeys(s *signer) (trustPath string, err error) {
	cfg := r.cfg.Signing
	switch {
	case cfg.PublicKey != "" && (cfg.TrustFile != "" || s.key != nil):
		return "", command.Usage("", "--public-key is for a --sign-cmd without --trust-file")
	case cfg.PublicKey != "":
		key := pki.PublicKey{Algorithm: s.algorithm, Public: cfg.PublicKey}
		if !key.Usable() {
			return "", command.Usage("nixfleet derive-pubkey FILE prints it", "--public-key is not the base64 of an %s key",
				s.algorithm)
		}
		s.slot = &pki.KeySlot{Current: &key}
		return "", nil
	case cfg.TrustFile != "" || s.slot != nil || r.cfg.DryRun:
		return cfg.TrustFile, nil
	}
	ours := filepath.Join(r.cfg.Source.Flake, trustName)
	if _, err := os.Stat(ours); err == nil {
		r.say("verifying signatures with %s", ours)
		return ours, nil
	}
	if !cfg.AllowUnverified {
		return "", command.Usage(
			"give --trust-file trust.json (NIXFLEET_TRUST_FILE) or --public-key KEY; --allow-unverified publishes anyway",
			"no key is given to verify what --sign-cmd signs: hosts might refuse it")
	}
	return "", nil
}

// trustName is the trust file at the top of a fleet's repository.
const trustName = "trust.json"

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
		return nil, command.Coded(2, command.Hinted(fmt.Errorf("sign %s: the hook wrote %d bytes, a signature has %d", what,
			len(sig), pki.SignatureSize),
			"write the raw bytes (R then S for ecdsa-p256) to $NIXFLEET_OUTPUT: no text, no newline, no DER"))
	}
	if s.slot == nil {
		return sig, nil
	}
	if verifies(s.slot, canonical, sig) {
		return sig, nil
	}
	return nil, command.Coded(3, command.Hinted(fmt.Errorf("sign %s: the signature does not verify under any release "+
		"key of the fleet", what),
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
	return command.ReadFile(out, command.SmallFile)
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
