package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestMain lets this binary stand in for the program that holds a TPM's key:
// with TPM_STAND_IN set it signs the file it is given, always with high S.
func TestMain(m *testing.M) {
	seed := os.Getenv("TPM_STAND_IN")
	if seed == "" {
		os.Exit(m.Run())
	}
	key, err := ParsePrivateKey([]byte(seed))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	message, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	private := key.Crypto().(*ecdsa.PrivateKey)
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if n := private.Params().N; s.Cmp(new(big.Int).Rsh(n, 1)) <= 0 {
		s.Sub(n, s)
	}
	os.Stdout.Write(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func TestTPMIssues_T7(t *testing.T) {
	f := newFleetCA(t)
	key, err := f.issuingKey.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TPM_STAND_IN", string(key))
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	raw := decode64(t, f.issuingKey.Public().Public)
	signer, err := NewTPMSigner(raw, self)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := WithSigner(certificatePEM(f.issuing.Cert.Raw), signer)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, cert, err := ca.IssueAgent(hostCSR(t, seedKey(t, 0x33), "db-01"), "db-01", suffix, f.now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyChain([]*x509.Certificate{cert}, f.pool(), x509.ExtKeyUsageClientAuth, f.now); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestTPMRefuses(t *testing.T) {
	key, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	raw := decode64(t, key.Public().Public)
	dir := t.TempDir()
	for name, script := range map[string]string{
		"fails":         "exit 3",
		"says nothing":  "exit 0",
		"says too much": "head -c 1000000 /dev/zero",
		"says nonsense": "head -c 64 /dev/zero",
	} {
		path := filepath.Join(dir, "wrapper")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		signer, err := NewTPMSigner(raw, path)
		if err != nil {
			t.Fatal(err)
		}
		if sig, err := crypto.SignMessage(signer, rand.Reader, []byte("m"), crypto.SHA256); err == nil {
			t.Errorf("%s: signature %x", name, sig)
		}
	}
	signer, err := NewTPMSigner(raw, filepath.Join(dir, "none"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := crypto.SignMessage(signer, rand.Reader, []byte("m"), crypto.SHA256); err == nil {
		t.Error("signed by no program")
	}
	if _, err := crypto.SignMessage(signer, rand.Reader, []byte("m"), crypto.SHA512); err == nil {
		t.Error("signed with SHA-512")
	}
	if _, err := signer.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("signed a digest")
	}
	for _, size := range []int{0, 63, 65} {
		if _, err := NewTPMSigner(make([]byte, size), "x"); err == nil {
			t.Errorf("key of %d bytes", size)
		}
	}
}
