package pki

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// fleetDocument has the hosts and the size of a fleet.resolved of n hosts, in
// canonical form, about 400 bytes a host.
func fleetDocument(n int) []byte {
	var b strings.Builder
	b.WriteString(`{"hosts":{`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b,
			`"host-%05d":{"channel":"stable","closureHash":"0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-host-%05d-25.11.20260301.abcdef0",`+
				`"healthChecks":[{"kind":"http","name":"site","timeoutSecs":5,"url":"http://127.0.0.1:8080/healthz"}],`+
				`"pubkey":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd","system":"x86_64-linux","tags":["canary","eu-west","web"]}`, i, i)
	}
	b.WriteString(`},"meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z"},"schemaVersion":1}`)
	return []byte(b.String())
}

type benchFleet struct {
	artifactShape
	Hosts map[string]struct {
		System      string   `json:"system" shape:"R"`
		Tags        []string `json:"tags" shape:"R"`
		Channel     string   `json:"channel" shape:"R"`
		ClosureHash *string  `json:"closureHash" shape:"N"`
		Pubkey      *string  `json:"pubkey" shape:"N"`
	} `json:"hosts" shape:"R"`
}

func BenchmarkCanonicalize(b *testing.B) {
	for name, doc := range map[string][]byte{
		"head": []byte(
			`{"meta":{"schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z"},"kind":"head","schemaVersion":1,"channel":"stable"}`),
		"10000 hosts":                fleetDocument(10000),
		"10000 hosts, not canonical": []byte(strings.ReplaceAll(string(fleetDocument(10000)), `,"`, ",\n \"")),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Canonicalize(doc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	doc := fleetDocument(10000)
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		var f benchFleet
		if err := Decode(doc, &f); err != nil || len(f.Hosts) != 10000 {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyArtifact is the share of this package in loading a release of
// 10,000 hosts: canonical form, hash, signature and decoding of its fleet.
func BenchmarkVerifyArtifact(b *testing.B) {
	doc := fleetDocument(10000)
	k := ciKey(b)
	public := k.Public()
	sig, err := k.Sign(doc)
	if err != nil {
		b.Fatal(err)
	}
	now := mustTime(b, noon)
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		_, err := VerifyArtifact(&KeySlot{Current: &public}, doc, sig, now, time.Hour,
			func(canonical []byte) (Metadata, error) {
				var f benchFleet
				err := Decode(canonical, &f)
				return Metadata{f.SchemaVersion, f.Meta.SignedAt}, err
			})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	message := []byte(strings.Repeat("m", 1024))
	for _, algorithm := range []string{AlgorithmEd25519, AlgorithmP256} {
		b.Run(algorithm, func(b *testing.B) {
			k, err := GenerateKey(algorithm)
			if err != nil {
				b.Fatal(err)
			}
			sig, err := k.Sign(message)
			if err != nil {
				b.Fatal(err)
			}
			public := k.Public()
			for b.Loop() {
				if !public.Verify(message, sig) {
					b.Fatal("does not verify")
				}
			}
		})
	}
}

func BenchmarkTree(b *testing.B) {
	data := leaves(10000)
	b.Run("build 10000", func(b *testing.B) {
		for b.Loop() {
			NewTree(data)
		}
	})
	b.Run("prove and verify in 10000", func(b *testing.B) {
		tree := NewTree(data)
		root := tree.Root()
		for b.Loop() {
			path, err := tree.Proof(1234)
			if err != nil || VerifyInclusion(root, 10000, 1234, data[1234], path) != nil {
				b.Fatal(err)
			}
		}
	})
}
