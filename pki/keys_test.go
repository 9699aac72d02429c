package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"
	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"
)

func pemOf(t testing.TB, kind string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestParsePrivateKeyForms(t *testing.T) {
	ed := ciKey(t)
	p256, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	seed := bytes.Repeat([]byte{0x11}, 32)
	sec1, err := x509.MarshalECPrivateKey(p256.Crypto().(*ecdsa.PrivateKey))
	sec1PEM := pemOf(t, "EC PRIVATE KEY", sec1, err)
	opensslEC := append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"),
		sec1PEM...)
	forms := []struct {
		name string
		data []byte
		want *PrivateKey
	}{
		{"raw", seed, ed},
		{"hex", []byte(hex.EncodeToString(seed)), ed},
		{"hex with a newline", []byte(strings.ToUpper(hex.EncodeToString(seed)) + "\n"), ed},
		{"SEC 1", sec1PEM, p256},
		{"SEC 1 as openssl writes it", opensslEC, p256},
	}
	for _, k := range []*PrivateKey{ed, p256} {
		pkcs8, err := k.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		openssh, err := k.MarshalOpenSSH("root@web-01")
		if err != nil {
			t.Fatal(err)
		}
		forms = append(forms, struct {
			name string
			data []byte
			want *PrivateKey
		}{"PKCS#8 " + k.Algorithm(), pkcs8, k}, struct {
			name string
			data []byte
			want *PrivateKey
		}{"OpenSSH " + k.Algorithm(), openssh, k})
	}
	for _, f := range forms {
		got, err := ParsePrivateKey(f.data)
		if err != nil || got.Public() != f.want.Public() || got.Algorithm() != f.want.Algorithm() {
			t.Errorf("%s: got %v, %v", f.name, got, err)
			continue
		}
		sig, err := got.Sign([]byte("m"))
		if err != nil || len(sig) != SignatureSize || !f.want.Public().Verify([]byte("m"), sig) {
			t.Errorf("%s: signature %x, %v", f.name, sig, err)
		}
	}
}

// The two private keys of RFC 8410 §10.3 are one: alone, and with attributes and
// its public half as tools in Rust write it.
func TestParsePrivateKeyOfRFC8410(t *testing.T) {
	for _, text := range []string{
		"MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC",
		"MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC" +
			"oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB" +
			"Z9w7lshQhqowtrbLDFw4rXAxZuE=",
	} {
		k, err := ParsePrivateKey(pemOf(t, "PRIVATE KEY", decode64(t, text), nil))
		if err != nil || k.Public() != (PublicKey{AlgorithmEd25519, "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="}) {
			t.Errorf("got %v, %v", k, err)
		}
	}
}

func TestParsePrivateKeyRefuses(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, rsaErr := x509.MarshalPKCS8PrivateKey(rsaKey)
	p384DER, p384Err := x509.MarshalPKCS8PrivateKey(p384)
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(ciKey(t).Crypto(), "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	good, err := ciKey(t).MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	// The file's public half is exchanged, which its parser does not notice.
	seed := ciKey(t).Crypto().(ed25519.PrivateKey).Seed()
	mixed, err := ssh.MarshalPrivateKey(
		ed25519.PrivateKey(append(seed, orgKey(t).Crypto().Public().(ed25519.PublicKey)...)), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"halves of two keys":     pem.EncodeToMemory(mixed),
		"nothing":                nil,
		"31 bytes":               make([]byte, 31),
		"33 bytes":               make([]byte, 33),
		"64 bytes":               make([]byte, 64),
		"hex of 31 bytes":        []byte(strings.Repeat("00", 31)),
		"RSA":                    pemOf(t, "PRIVATE KEY", rsaDER, rsaErr),
		"P-384":                  pemOf(t, "PRIVATE KEY", p384DER, p384Err),
		"passphrase":             pem.EncodeToMemory(locked),
		"truncated PEM":          good[:len(good)/2],
		"damaged DER":            pemOf(t, "PRIVATE KEY", []byte("garbage"), nil),
		"damaged OpenSSH":        pemOf(t, "OPENSSH PRIVATE KEY", []byte("garbage"), nil),
		"certificate":            pemOf(t, "CERTIFICATE", []byte("garbage"), nil),
		"parameters without key": []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"),
	} {
		if k, err := ParsePrivateKey(data); !errors.Is(err, ErrKey) {
			t.Errorf("%s: got %v, %v", name, k, err)
		}
	}
	if _, err := GenerateKey("rsa"); !errors.Is(err, ErrKey) {
		t.Errorf("algorithm rsa: %v", err)
	}
}

// Private halves do not leak through any door by which values reach people. T13
func TestPrivateKeyRedactsItself(t *testing.T) {
	seed := []byte("0123456789abcdef0123456789abcdef")
	k, err := ParsePrivateKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logger := zerolog.New(&log)
	logger.Info().Object("key", k).Interface("any", k).Any("value", *k).Msg("")
	encoded, _ := json.Marshal(map[string]any{"pointer": k, "value": *k})
	shown := log.String() + string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown += fmt.Sprintf(verb+verb, k, *k) + fmt.Sprintf(verb, struct{ K *PrivateKey }{k}) +
			fmt.Sprintf(verb, struct{ K PrivateKey }{*k})
	}
	for _, secret := range []string{string(seed), hex.EncodeToString(seed), strings.ToUpper(hex.EncodeToString(seed)),
		base64.StdEncoding.EncodeToString(seed)[:40], "48 49 50 51", "0x30, 0x31"} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q is shown in %s", secret, shown)
		}
	}
	// Nor does an error quote what it could not read.
	for _, data := range []string{"-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END PRIVATE KEY-----\n",
		strings.Repeat("secret", 9)} {
		if _, err := ParsePrivateKey([]byte(data)); err == nil || strings.Contains(err.Error(), "secret") ||
			strings.Contains(err.Error(), "c2Vj") {
			t.Errorf("got %v", err)
		}
	}
}

type wycheproof struct {
	TestGroups []struct {
		PublicKey struct{ PK, Uncompressed string }
		Tests     []struct {
			TcID             int
			Comment          string
			Msg, Sig, Result string
		}
	}
}

func runWycheproof(t *testing.T, file, algorithm string, atLeast int) {
	var doc wycheproof
	if err := json.Unmarshal(readFile(t, "vectors", "wycheproof", file), &doc); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := 0
	for _, g := range doc.TestGroups {
		raw := unhex(g.PublicKey.PK)
		if algorithm == AlgorithmP256 {
			raw = unhex(g.PublicKey.Uncompressed)[1:]
		}
		key := PublicKey{algorithm, base64.StdEncoding.EncodeToString(raw)}
		for _, c := range g.Tests {
			n++
			if got := key.Verify(unhex(c.Msg), unhex(c.Sig)); got != (c.Result == "valid") {
				t.Errorf("case %d (%s): got %v, want %s", c.TcID, c.Comment, got, c.Result)
			}
		}
	}
	if n < atLeast {
		t.Errorf("only %d cases", n)
	}
}

func TestVectorsWycheproofEd25519(t *testing.T) {
	runWycheproof(t, "ed25519_test.json", AlgorithmEd25519, 150)
}

// Its valid cases include S above n/2. T7
func TestVectorsWycheproofP256_T7(t *testing.T) {
	runWycheproof(t, "ecdsa_secp256r1_sha256_p1363_test.json", AlgorithmP256, 262)
}

// universalSignature is R = B, S = 1: under the key of order 1 it fits every
// message, under one of order 8 every eighth.
func universalSignature() []byte {
	one := append([]byte{1}, make([]byte, 31)...)
	return append(edwards25519.NewGeneratorPoint().Bytes(), one...)
}

func TestVerifyRefusesSmallOrder(t *testing.T) {
	loose := 0 // what a verifier of the plain equation lets through
	for _, k := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		// Second encodings of points: y of p and of p+1.
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		raw, err := hex.DecodeString(k)
		if err != nil {
			t.Fatal(err)
		}
		sig := universalSignature()
		accepted := 0
		for i := range 64 {
			if ed25519.Verify(raw, []byte{byte(i)}, sig) {
				loose++
			}
			if (PublicKey{AlgorithmEd25519, base64.StdEncoding.EncodeToString(raw)}).Verify([]byte{byte(i)}, sig) {
				accepted++
			}
		}
		if accepted > 0 {
			t.Errorf("key %s verified %d messages", k, accepted)
		}
	}
	if loose < 64 {
		t.Errorf("the signature fits %d messages, so nothing is shown", loose)
	}

	// R of small order under a good key, made by its holder: S = k*a for R = 1.
	key := ciKey(t).Crypto().(ed25519.PrivateKey)
	public, message := key.Public().(ed25519.PublicKey), []byte("m")
	r := append([]byte{1}, make([]byte, 31)...)
	expanded := sha512.Sum512(key.Seed())
	a, err := new(edwards25519.Scalar).SetBytesWithClamping(expanded[:32])
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512(slices.Concat(r, public, message))
	k, err := new(edwards25519.Scalar).SetUniformBytes(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(r, new(edwards25519.Scalar).Multiply(k, a).Bytes()...)
	if !ed25519.Verify(public, message, sig) {
		t.Fatal("the plain equation does not hold, so nothing is shown")
	}
	if ciKey(t).Public().Verify(message, sig) {
		t.Error("R of small order verified")
	}
}

func TestVerifyRefusesMalformed(t *testing.T) {
	k := ciKey(t)
	good := k.Public()
	sig, err := k.Sign([]byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	if !good.Verify([]byte("m"), sig) {
		t.Fatal("good signature refused")
	}
	unpadded := strings.TrimRight(good.Public, "=")
	// The last digit before the padding carries two bits that must be zero.
	trailing := unpadded[:len(unpadded)-1] + string(unpadded[len(unpadded)-1]+1) + "="
	p256, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	offCurve := decode64(t, p256.Public().Public)
	offCurve[63] ^= 1
	for name, key := range map[string]PublicKey{
		"no padding":         {AlgorithmEd25519, unpadded},
		"trailing bits":      {AlgorithmEd25519, trailing},
		"newline":            {AlgorithmEd25519, good.Public + "\n"},
		"URL alphabet":       {AlgorithmEd25519, strings.NewReplacer("+", "-", "/", "_").Replace(good.Public) + "-"},
		"other algorithm":    {AlgorithmP256, good.Public},
		"unknown algorithm":  {"Ed25519", good.Public},
		"no algorithm":       {"", good.Public},
		"no key":             {AlgorithmEd25519, ""},
		"short":              {AlgorithmEd25519, base64.StdEncoding.EncodeToString(make([]byte, 31))},
		"P-256 off curve":    {AlgorithmP256, base64.StdEncoding.EncodeToString(offCurve)},
		"P-256 with prefix":  {AlgorithmP256, base64.StdEncoding.EncodeToString(append([]byte{4}, offCurve...))},
		"P-256 of all zeros": {AlgorithmP256, base64.StdEncoding.EncodeToString(make([]byte, 64))},
	} {
		if key.Verify([]byte("m"), sig) {
			t.Errorf("%s: verified", name)
		}
	}
	for i := range sig {
		changed := bytes.Clone(sig)
		changed[i] ^= 0x10
		if good.Verify([]byte("m"), changed) {
			t.Errorf("byte %d changed: verified", i)
		}
	}
}

func TestSignP256IsLowS(t *testing.T) {
	k, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	for range 32 {
		sig, err := k.Sign([]byte("m"))
		if err != nil || !k.Public().Verify([]byte("m"), sig) {
			t.Fatal(err)
		}
		if sig[32] >= 0x80 {
			t.Errorf("S is high: %x", sig[32:])
		}
	}
}

func TestParseHostKeyRefuses(t *testing.T) {
	good := FormatHostKey(ciKey(t).Crypto().Public().(ed25519.PublicKey), "root@web-01")
	if !strings.HasSuffix(good, " root@web-01") {
		t.Fatal(good)
	}
	blob := strings.Fields(good)[1]
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaPublic, err := ssh.NewPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaBlob := base64.StdEncoding.EncodeToString(rsaPublic.Marshal())
	for name, line := range map[string]string{
		"empty":           "",
		"word":            "ssh-ed25519",
		"blob alone":      blob,
		"two lines":       good + "\n" + good,
		"options before":  "no-pty " + good,
		"other algorithm": "ssh-rsa " + rsaBlob,
		"lying algorithm": "ssh-ed25519 " + rsaBlob,
		"lying blob":      "ssh-rsa " + blob,
		"truncated":       "ssh-ed25519 " + blob[:len(blob)-4],
		"longer":          "ssh-ed25519 " + base64.StdEncoding.EncodeToString(append(decode64(t, blob), 0)),
		"not base64":      "ssh-ed25519 " + strings.Replace(blob, "A", "*", 1),
		"fingerprint":     "SHA256:bI+GB9vocHemKimQzgfZSq90nfdvh7mOt4am0Q8DB2U",
	} {
		if k, err := ParseHostKey(line); !errors.Is(err, ErrKey) {
			t.Errorf("%s: got %x, %v", name, k, err)
		}
	}
	for line, want := range map[string]bool{
		"SHA256:jS0j9jKMqDbIuyRwqTbJVwCzZbVvqPrvVMsLrBJgPlM":                           true,
		"256 SHA256:jS0j9jKMqDbIuyRwqTbJVwCzZbVvqPrvVMsLrBJgPlM root@web-01 (ED25519)": true,
		"MD5:16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48":                          true,
		"bI+GB9vocHemKimQzgfZSq90nfdvh7mOt4am0Q8DB2U=":                                 false,
		good: false,
	} {
		if LooksLikeSSHFingerprint(line) != want {
			t.Errorf("%q: want %v", line, want)
		}
	}
	if SameKey(nil, nil) || SameKey(make([]byte, 31), make([]byte, 31)) || SameKey(make([]byte, 32), nil) {
		t.Error("keys without a length are the same")
	}
}

func FuzzParsePrivateKey(f *testing.F) {
	k := ciKey(f)
	pkcs8, err := k.MarshalPEM()
	if err != nil {
		f.Fatal(err)
	}
	openssh, err := k.MarshalOpenSSH("")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pkcs8)
	f.Add(openssh)
	f.Add(make([]byte, 32))
	f.Add([]byte(strings.Repeat("1f", 32)))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParsePrivateKey(data)
		if err != nil {
			return
		}
		text, err := k.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePrivateKey(text)
		if err != nil || again.Public() != k.Public() {
			t.Fatalf("read back as %v, %v", again, err)
		}
		sig, err := k.Sign(data)
		if err != nil || !k.Public().Verify(data, sig) {
			t.Fatalf("its signature does not verify: %v", err)
		}
	})
}

func FuzzParseHostKey(f *testing.F) {
	f.Add(FormatHostKey(ciKey(f).Crypto().Public().(ed25519.PublicKey), "root@web-01"))
	f.Add("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQC3")
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXe\r\nssh-ed25519")
	f.Fuzz(func(t *testing.T, line string) {
		k, err := ParseHostKey(line)
		if err != nil {
			return
		}
		// One key has one line, but for the comment.
		written := FormatHostKey(k, "")
		if again, err := ParseHostKey(written); err != nil || !SameKey(again, k) {
			t.Fatalf("%q was written as %q: %v", line, written, err)
		}
		if !slices.Equal(strings.Fields(line)[:2], strings.Fields(written)) {
			t.Fatalf("%q and %q are one key", line, written)
		}
	})
}
