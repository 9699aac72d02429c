package pki

import "testing"

// FuzzParseCertificates hands over what a trust file or a bundle may hold: certificates whose keys are sound, or an
// error.
func FuzzParseCertificates(f *testing.F) {
	ca := newFleetCA(f)
	root, issuing := certificatePEM(ca.root.Cert.Raw), certificatePEM(ca.issuing.Cert.Raw)
	for _, seed := range [][]byte{root, append(root, issuing...), root[:len(root)/2],
		[]byte("-----BEGIN CERTIFICATE-----"),
		[]byte("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"),
		append([]byte("words\n"), issuing...), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, bundle []byte) {
		certs, err := ParseCertificates(bundle)
		if (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates and %v", len(certs), err)
		}
		for _, c := range certs {
			if CheckKey(c.PublicKey) != nil {
				t.Fatalf("a weak key was taken: %v", c.PublicKey)
			}
		}
	})
}
