package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/ssh"
)

// weakEd25519 are the encodings of all points of small order, and second
// encodings of others: y of p and more, for each y below 19 that is on the curve.
func weakEd25519(t *testing.T) map[string]ed25519.PublicKey {
	t.Helper()
	keys := map[string]ed25519.PublicKey{}
	for _, k := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	} {
		raw, err := hex.DecodeString(k)
		if err != nil {
			t.Fatal(err)
		}
		keys[k] = raw
	}
	seconds := 0
	for y := byte(0); y < 19; y++ {
		raw, err := hex.DecodeString("ed" + strings.Repeat("ff", 30) + "7f")
		if err != nil {
			t.Fatal(err)
		}
		raw[0] += y
		if p, err := new(edwards25519.Point).SetBytes(raw); err == nil {
			keys[hex.EncodeToString(raw)] = raw
			if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) != 1 {
				seconds++
			}
		}
	}
	if seconds == 0 {
		t.Fatal("no second encoding of a good point, so nothing is shown of those")
	}
	return keys
}

// weakCertificate is a certificate of ca for any key and in any version: one that this package does not make.
func weakCertificate(t *testing.T, ca *CA, template *x509.Certificate, pub crypto.PublicKey,
	change func(*tbsCertificate)) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(7)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, pub, ca.Signer)
	if err != nil {
		t.Fatal(err)
	}
	var cert struct {
		TBS       tbsCertificate
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		t.Fatal(err)
	}
	change(&cert.TBS)
	cert.TBS.Raw = nil
	tbs, err := asn1.Marshal(cert.TBS)
	if err != nil {
		t.Fatal(err)
	}
	digest := crypto.SHA256.New()
	digest.Write(tbs)
	signature, err := ca.Signer.Sign(rand.Reader, digest.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	cert.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	cert.TBS.Raw = asn1.RawContent(tbs)
	if der, err = asn1.Marshal(cert); err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

type tbsCertificate struct {
	Raw        asn1.RawContent
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   struct{ NotBefore, NotAfter time.Time }
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// A key by which strangers could sign is refused wherever a key is taken.
func TestWeakKeysAreRefusedEverywhere(t *testing.T) {
	f := newFleetCA(t)
	rules := IdentityRules{Suffix: suffix}
	for name, key := range weakEd25519(t) {
		if err := CheckKey(key); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
		blob := ssh.Marshal(struct {
			Type string
			Key  []byte
		}{ssh.KeyAlgoED25519, key})
		line := ssh.KeyAlgoED25519 + " " + base64.StdEncoding.EncodeToString(blob)
		if got, err := ParseHostKey(line); !errors.Is(err, ErrKey) {
			t.Errorf("host key %s: %x, %v", name, got, err)
		}
		if (PublicKey{AlgorithmEd25519, base64.StdEncoding.EncodeToString(key)}).Usable() {
			t.Errorf("release key %s is usable", name)
		}
		if _, err := f.root.IssueOperator("jo", key, f.now, time.Hour); !errors.Is(err, ErrKey) {
			t.Errorf("operator %s: %v", name, err)
		}
		if _, err := f.root.IssueServer([]string{"cp"}, key, f.now, time.Hour); !errors.Is(err, ErrKey) {
			t.Errorf("server %s: %v", name, err)
		}
		if _, _, err := f.issuing.IssueAgent(&CSR{Key: key, Raw: &x509.CertificateRequest{}}, "db-01", suffix, f.now,
			time.Hour); !errors.Is(err, ErrKey) {
			t.Errorf("agent %s: %v", name, err)
		}
		template := &x509.Certificate{Subject: pkix.Name{CommonName: "jo"}, NotBefore: f.now, NotAfter: f.now.Add(day)}
		leaf := weakCertificate(t, f.root, template, key, func(*tbsCertificate) {})
		if id, err := rules.Identify([][]*x509.Certificate{{leaf, f.root.Cert}}); !errors.Is(err, ErrIdentity) {
			t.Errorf("operator's certificate of %s: %+v, %v", name, id, err)
		}
		if _, err := ParseCertificates(certificatePEM(leaf.Raw)); !errors.Is(err, ErrKey) {
			t.Errorf("bundle with %s: %v", name, err)
		}
	}
}

// Points of P-256 have one encoding and no small order, as long as nobody takes what is not on the curve.
func TestSecondEncodingsOfP256AreRefused(t *testing.T) {
	key, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := DecodeBase64(key.Public().Public)
	if err != nil {
		t.Fatal(err)
	}
	p := elliptic.P256().Params().P
	plus := func(coordinate []byte) []byte { // the same value modulo p, in 32 bytes where it fits
		sum := new(big.Int).Add(new(big.Int).SetBytes(coordinate), p)
		if sum.BitLen() > 256 {
			return coordinate[:31]
		}
		return sum.FillBytes(make([]byte, 32))
	}
	// x = 5 is on the curve, and 5+p fits into 32 bytes.
	x := big.NewInt(5)
	y2 := new(big.Int).Exp(x, big.NewInt(3), p)
	y2.Sub(y2, new(big.Int).Mul(big.NewInt(3), x)).Add(y2, elliptic.P256().Params().B).Mod(y2, p)
	y := new(big.Int).ModSqrt(y2, p)
	if y == nil {
		t.Fatal("x = 5 is not on the curve")
	}
	small := append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	if !(PublicKey{AlgorithmP256, base64.StdEncoding.EncodeToString(small)}).Usable() {
		t.Fatal("the point of x = 5 is refused, so nothing is shown")
	}
	for name, weak := range map[string][]byte{
		"infinity":      make([]byte, 64),
		"x of p more":   append(plus(small[:32]), small[32:]...),
		"off the curve": append(append([]byte{}, raw[:63]...), raw[63]^1),
		"compressed":    append([]byte{2}, raw[:32]...),
		"uncompressed":  append([]byte{4}, raw...),
		"too short":     raw[:63],
	} {
		if (PublicKey{AlgorithmP256, base64.StdEncoding.EncodeToString(weak)}).Usable() {
			t.Errorf("%s is usable", name)
		}
		if _, err := NewTPMSigner(weak, "/bin/true"); !errors.Is(err, ErrKey) {
			t.Errorf("TPM key, %s: %v", name, err)
		}
	}
}

// A certificate of X.509 v1 has no extensions: nothing says that it is not a CA, or for what it is.
func TestX509v1IsNobodys(t *testing.T) {
	f := newFleetCA(t)
	key := seedKey(t, 0x31).Crypto().Public()
	for _, version := range []int{1, 2, 3} {
		template := &x509.Certificate{Subject: pkix.Name{CommonName: "jo"}, NotBefore: f.now, NotAfter: f.now.Add(day)}
		leaf := weakCertificate(t, f.root, template, key, func(c *tbsCertificate) {
			if c.Version = version - 1; version < 3 {
				c.Extensions = nil
			}
		})
		chains, err := VerifyChain([]*x509.Certificate{leaf}, f.pool(), x509.ExtKeyUsageClientAuth, f.now)
		if err != nil {
			t.Fatalf("v%d does not verify, so nothing is shown: %v", version, err)
		}
		id, err := IdentityRules{Suffix: suffix}.Identify(chains)
		if (err == nil) != (version == 3) || version < 3 && !errors.Is(err, ErrIdentity) {
			t.Errorf("v%d: %+v, %v", version, id, err)
		}
	}
}

// A nonce has its form, in whatever was signed.
func TestTokenWithAnotherNonce(t *testing.T) {
	org := orgKey(t)
	slot := &KeySlot{Current: &PublicKey{}}
	*slot.Current = org.Public()
	now := mustTime(t, noon)
	for _, nonce := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 33),
		strings.Repeat("A", 32), strings.Repeat("g", 32), strings.Repeat("0", 31) + "\n", " " + strings.Repeat("0", 31)} {
		c := Claims{Hostname: "db-01", IssuedAt: At(now), ExpiresAt: At(now.Add(time.Hour)), Nonce: nonce}
		if _, err := MintToken(org, c); !errors.Is(err, ErrNonce) {
			t.Errorf("minted with %q: %v", nonce, err)
		}
		canonical, err := Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := org.Sign(canonical)
		if err != nil {
			t.Fatal(err)
		}
		token := &Token{Version: 1, Claims: c, Signature: base64.StdEncoding.EncodeToString(sig)}
		if err := token.Verify(slot, now); !errors.Is(err, ErrTokenSignature) || !errors.Is(err, ErrNonce) {
			t.Errorf("verified with %q: %v", nonce, err)
		}
		text, err := Marshal(token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseToken(text); !errors.Is(err, ErrNonce) {
			t.Errorf("read with %q: %v", nonce, err)
		}
	}
}
