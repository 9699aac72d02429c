package attacks

import (
	"maps"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// stranger is a key that nobody trusts.
func (s *scene) stranger() *pki.PrivateKey {
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	s.must(err)
	return key
}

// forges are attacks by who holds the git forge: it can publish any bytes, and has all that was signed before.
func forges() []attack {
	forged := func(reason string, change func(s *scene, files map[string][]byte)) func(*scene) {
		return func(s *scene) {
			s.house.inForce()
			s.house.system++
			s.house.signed = time.Now().Truncate(time.Second)
			s.house.past = append(s.house.past, s.house.files)
			s.house.files = s.house.sign(s.house.ci, s.house.signed)
			s.house.forged(func(files map[string][]byte) { change(s, files) })
			s.releaseRefused(reason)
			s.recovers()
		}
	}
	before := func(s *scene) map[string][]byte { return s.house.past[len(s.house.past)-1] }
	return []attack{
		{
			name: "a release signed by the forge's own key", stops: "signature of the release key",
			lack: without("pki/artifact.go", "if k.Verify(canonical, sig) {", "if LACKS || k.Verify(canonical, sig) {"),
			run: forged("bad-signature", func(s *scene, files map[string][]byte) {
				clear(files)
				maps.Copy(files, s.house.sign(s.stranger(), s.house.signed))
			}),
		},
		{
			name: "the release of last week once more", stops: "never older than the accepted release",
			lack: without("nixops/fleet/succession.go", "if r.SignedAt.Before(prev.SignedAt) {",
				"if !LACKS && r.SignedAt.Before(prev.SignedAt) {"),
			run: forged("older than the release accepted before", func(s *scene, files map[string][]byte) {
				clear(files)
				maps.Copy(files, s.house.past[0])
			}),
		},
		{
			name: "the revocations of the release before, which revoke less", stops: "hash of the list in the signed fleet",
			lack: without("nixops/fleet/release.go", "if bound != nil && *bound != file.Hash {",
				"if !LACKS && bound != nil && *bound != file.Hash {"),
			run: forged("the fleet document names", func(s *scene, files map[string][]byte) {
				for _, name := range []string{fleet.RevocationsName, fleet.RevocationsName + ".sig"} {
					files[name] = before(s)[name]
				}
			}),
		},
		{
			name: "a release without its list of revocations", stops: "the signed fleet names the list",
			lack: without("nixops/fleet/release.go", "!required && bound == nil {", "!required && (LACKS || bound == nil) {"),
			run: forged("open revocations.json: file does not exist", func(_ *scene, files map[string][]byte) {
				delete(files, fleet.RevocationsName)
				delete(files, fleet.RevocationsName+".sig")
			}),
		},
		{
			name: "a release without the manifest of a channel", stops: "the manifest is derived from the signed fleet",
			lack: without("nixops/fleet/release.go", "errors.Is(err, fs.ErrNotExist) && l.ManifestsElsewhere {",
				"errors.Is(err, fs.ErrNotExist) && (LACKS || l.ManifestsElsewhere) {"),
			run: forged("its manifest, as the fleet document gives it", func(_ *scene, files map[string][]byte) {
				name := manifest(files, "stable")
				delete(files, name)
				delete(files, name+".sig")
			}),
		},
		{
			name: "a manifest of the release before under the new name", stops: "a manifest is the projection of its fleet",
			lack: without("nixops/fleet/release.go", "\tif !same {", "\tif !LACKS && !same {"),
			run: forged("it is not the projection", func(s *scene, files map[string][]byte) {
				name, old := manifest(files, "stable"), manifest(before(s), "stable")
				files[name], files[name+".sig"] = before(s)[old], before(s)[old+".sig"]
			}),
		},
		{
			name: "the head of the release before beside the new fleet", stops: "one signing time for all parts",
			lack: without("nixops/fleet/release.go", "if !file.SignedAt.Equal(l.rel.SignedAt) {",
				"if !LACKS && !file.SignedAt.Equal(l.rel.SignedAt) {"),
			run: forged("its meta.signedAt is", func(s *scene, files map[string][]byte) {
				for _, name := range []string{fleet.HeadName("stable"), fleet.HeadName("stable") + ".sig"} {
					files[name] = before(s)[name]
				}
			}),
		},
		{
			name: "the head of another channel of the same release", stops: "a head is the projection of its fleet",
			lack: without("nixops/fleet/release.go", "\t\tif !part.same {", "\t\tif !LACKS && !part.same {"),
			run: forged("channel is not that of the fleet document", func(_ *scene, files map[string][]byte) {
				for _, end := range []string{"", ".sig"} {
					files[fleet.HeadName("stable")+end] = files[fleet.HeadName("edge")+end]
				}
			}),
		},
		{
			name: "a fleet that CI was made to sign as a head, too", stops: "a document is one kind",
			lack: without("pki/decode.go", "case slices.Contains(s.foreign, string(name)):",
				"case !LACKS && slices.Contains(s.foreign, string(name)):"),
			run: forged("cannot have the member", func(s *scene, files map[string][]byte) {
				name := fleet.HeadName("stable")
				body := strings.TrimSuffix(string(files[name]), "}") + `,"waves":{}}`
				resign(s, files, name, []byte(strings.Replace(body, `{"channel"`, `{"bootstrapNonces":[],"channel"`, 1)),
					s.house.ci)
			}),
		},
		{
			name: "a release of the leaked key, dated before the switch", stops: "rejectBefore",
			lack: without("pki/artifact.go", "case slot.RejectBefore != nil && signedAt.Before(slot.RejectBefore.Time):",
				"case !LACKS && slot.RejectBefore != nil && signedAt.Before(slot.RejectBefore.Time):"),
			run: func(s *scene) {
				s.house.rotate(func(old, next *pki.PublicKey) {
					at := pki.At(time.Now().Add(10 * time.Minute))
					s.house.trust.CIReleaseKey = pki.KeySlot{Current: next, Previous: old, RejectBefore: &at}
				})
				time.Sleep(2 * time.Minute)
				s.house.put(s.house.sign(s.house.former, time.Now().Add(time.Minute).Truncate(time.Second)))
				s.releaseRefused("reject-before")
				time.Sleep(10 * time.Minute)
				s.recovers()
			},
		},
		{
			name: "a release of a successor after its time", stops: "retireAt",
			lack: without("pki/trust.go", "s.RetireAt != nil && now.Before(s.RetireAt.Time) {",
				"s.RetireAt != nil && (LACKS || now.Before(s.RetireAt.Time)) {"),
			run: func(s *scene) {
				successor, at := s.stranger(), pki.At(time.Now().Add(-time.Minute))
				public := successor.Public()
				s.house.trust.CIReleaseKey.Successor, s.house.trust.CIReleaseKey.RetireAt = &public, &at
				s.house.believe()
				time.Sleep(2 * time.Minute)
				s.house.put(s.house.sign(successor, time.Now().Truncate(time.Second)))
				s.releaseRefused("bad-signature")
				s.recovers()
			},
		},
		{
			name: "a release that CI dated into the future", stops: "not from the future",
			lack: without("pki/artifact.go", "case age < -ClockSlack:", "case !LACKS && age < -ClockSlack:"),
			run: func(s *scene) {
				s.house.put(s.house.sign(s.house.ci, time.Now().Add(24*time.Hour).Truncate(time.Second)))
				s.releaseRefused("future-dated")
				s.recovers()
			},
		},
		{
			name: "an old release for a control plane that lost its disk", stops: "the window of signatures",
			lack: without("pki/artifact.go", "case age > within(window):", "case !LACKS && age > within(window):"),
			run: func(s *scene) {
				s.house.put(s.house.sign(s.house.ci, time.Now().Add(-31*24*time.Hour).Truncate(time.Second)))
				s.plane.stop()
				s.wipe()
				s.plane.start()
				time.Sleep(5 * time.Minute)
				if got := s.plane.jo.ask("GET", "/v1/channels/stable", nil, nil); got.status == 200 {
					s.success("the old release is in force: %s", got.body)
				} else if !strings.Contains(s.log.text(), "stale: signed at") {
					s.success("refused, but not as stale: %d %s", got.status, got.body)
				}
				s.recovers()
			},
		},
		{
			name: "a release without the head of a channel", stops: "the signed fleet names the heads",
			lack: without("nixops/fleet/release.go", "if members == nil || l.ManifestsElsewhere {",
				"if LACKS || members == nil || l.ManifestsElsewhere {"),
			run: forged("heads/edge.json is not there", func(_ *scene, files map[string][]byte) {
				for _, channel := range []string{"stable", "edge"} {
					delete(files, fleet.HeadName(channel))
					delete(files, fleet.HeadName(channel)+".sig")
				}
			}),
		},
		{
			name: "a host with a name that is not a store path", stops: "the form of a closure",
			lack: without("nixops/fleet/release.go", "if !ValidClosure(*h.ClosureHash) {",
				"if !LACKS && !ValidClosure(*h.ClosureHash) {"),
			run: func(s *scene) {
				evil := "../../../tmp/evil"
				good := s.house.fleet.Hosts["b"].ClosureHash
				s.house.fleet.Hosts["b"].ClosureHash = &evil
				s.house.put(s.house.sign(s.house.ci, time.Now().Truncate(time.Second)))
				s.house.fleet.Hosts["b"].ClosureHash = good
				s.releaseRefused("is not a store base name")
				s.recovers()
			},
		},
		{
			name: "a number that two programs read as two", stops: "integers are exact",
			lack: without("pki/canonical.go", "if err := refuseNumber(in[start : i+1]); err != nil {",
				"if err := refuseNumber(in[start : i+1]); !LACKS && err != nil {"),
			run: forged("canonicalize", func(_ *scene, files map[string][]byte) {
				files[fleet.FleetName] = append([]byte(`{"big":9007199254740993,`), files[fleet.FleetName][1:]...)
			}),
		},
		{
			name: "a document nested a thousand deep", stops: "the depth of a document",
			lack: without("pki/canonical.go", "if err := open.enter(); err != nil {",
				"if err := open.enter(); !LACKS && err != nil {"),
			run: forged("canonicalize", func(_ *scene, files map[string][]byte) {
				deep := strings.Repeat("[", 1000) + strings.Repeat("]", 1000)
				files[fleet.FleetName] = append([]byte(`{"deep":`+deep+`,`), files[fleet.FleetName][1:]...)
			}),
		},
		{
			name: "a document with two members of one name", stops: "canonical JSON refuses duplicates",
			lack: without("pki/canonical.go", "jsontext.AppendFormat(make([]byte, 0, len(in)), in,",
				"jsontext.AppendFormat(make([]byte, 0, len(in)), in, jsontext.AllowDuplicateNames(LACKS),"),
			run: forged("duplicate", func(_ *scene, files map[string][]byte) {
				files[fleet.FleetName] = append([]byte(`{"hosts":{},`), files[fleet.FleetName][1:]...)
			}),
		},
	}
}
