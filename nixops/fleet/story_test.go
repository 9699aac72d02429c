package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
)

// A story draws keys, a slot, one signed document and who reads it, in lines of words:
//
//	holds ci ed25519                 a key, by the name of its holder
//	holds thief ecdsa-p256
//	slot current=ci previous=thief   what readers trust; also successor=, and times retireAt=, rejectBefore=;
//	                                 junk and unknown are keys that are not one
//	signs ci head at -10m            who signs what, and when; times are from noon on, which is when it is read
//	reads within 1h: accepted        or the reason of the refusal
//
// so that one that fails can be read, and be told again with another ending.
type story struct {
	t    testing.TB
	keys map[string]*pki.PrivateKey
	slot *pki.KeySlot
	kind string
	body []byte
	sig  []byte
	told string
}

var storyNoon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// storyKeys are made once: a table has thousands of stories.
var storyKeys = map[string]*pki.PrivateKey{}

// tell tells a story to its end, and fails where a line of it is not true.
func tell(t testing.TB, text string) {
	t.Helper()
	s := &story{t: t, keys: map[string]*pki.PrivateKey{}, told: text}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		verbs := map[string]func([]string){"holds": s.holds, "slot": s.trusts, "signs": s.signs, "reads": s.reads}
		verb := verbs[words[0]]
		if verb == nil {
			t.Fatalf("%q is not a line of a story", line)
		}
		verb(words[1:])
	}
}

func (s *story) holds(words []string) {
	name := strings.Join(words, " ")
	if storyKeys[name] == nil {
		key, err := pki.GenerateKey(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		storyKeys[name] = key
	}
	s.keys[words[0]] = storyKeys[name]
}

func (s *story) time(text string) time.Time {
	d, err := time.ParseDuration(strings.TrimPrefix(text, "+"))
	if err != nil {
		s.t.Fatalf("time %q: %v", text, err)
	}
	return storyNoon.Add(d)
}

func (s *story) public(name string) *pki.PublicKey {
	switch name {
	case "junk":
		return &pki.PublicKey{Algorithm: pki.AlgorithmEd25519, Public: "AAAA"}
	case "unknown":
		return &pki.PublicKey{Algorithm: "ml-dsa-65", Public: "AAAA"}
	}
	if s.keys[name] == nil {
		s.t.Fatalf("nobody holds the key of %q", name)
	}
	public := s.keys[name].Public()
	return &public
}

func (s *story) trusts(words []string) {
	s.slot = &pki.KeySlot{}
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "current":
			s.slot.Current = s.public(value)
		case "previous":
			s.slot.Previous = s.public(value)
		case "successor":
			s.slot.Successor = s.public(value)
		case "retireAt", "rejectBefore":
			at := pki.At(s.time(value))
			if name == "retireAt" {
				s.slot.RetireAt = &at
			} else {
				s.slot.RejectBefore = &at
			}
		default:
			s.t.Fatalf("a slot has no %q", name)
		}
	}
}

// storyDocuments are the bodies of each kind without their time, made once.
var storyDocuments map[string]map[string]any

func (s *story) signs(words []string) {
	who, kind, at := words[0], words[1], s.time(words[3])
	if storyDocuments == nil {
		t, ok := s.t.(*testing.T)
		if !ok {
			s.t.Fatal("stories are told in tests")
		}
		storyDocuments = documents(t)
	}
	doc := storyDocuments[kind]
	if doc == nil {
		s.t.Fatalf("there is no document of kind %q", kind)
	}
	meta, _ := doc["meta"].(map[string]any)
	body, err := pki.Marshal(with(doc, "meta", with(meta, "signedAt", pki.At(at).String())))
	if err != nil {
		s.t.Fatal(err)
	}
	s.kind, s.body = kind, body
	if s.sig, err = s.keys[who].Sign(body); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) reads(words []string) {
	window, err := time.ParseDuration(strings.TrimSuffix(words[1], ":"))
	if err != nil {
		s.t.Fatal(err)
	}
	err = verifierWithin(s.kind, window)(s.slot, s.body, s.sig, storyNoon)
	got := "accepted"
	if refused := (*pki.VerifyError)(nil); errors.As(err, &refused) {
		got = string(refused.Reason)
	} else if err != nil {
		got = err.Error()
	}
	if want := strings.Join(words[2:], " "); got != want {
		s.t.Errorf("%s, wanted %s:\n%s", got, want, s.told)
	}
}

func verifierWithin(kind string, window time.Duration) func(*pki.KeySlot, []byte, []byte, time.Time) error {
	return func(slot *pki.KeySlot, body, sig []byte, now time.Time) (err error) {
		switch kind {
		case KindFleet:
			_, _, err = Verify(slot, body, sig, now, window, ParseFleet)
		case KindManifest:
			hash, hashed := pki.CanonicalHash(body)
			if hashed != nil {
				return hashed
			}
			_, _, err = VerifyManifest(slot, hash, body, sig, now, window)
		case KindHead:
			_, _, err = VerifyHead(slot, body, sig, now, window)
		case KindRevocations:
			_, _, err = Verify(slot, body, sig, now, window, ParseRevocations)
		default:
			_, _, err = Verify(slot, body, sig, now, window, ParseNonces)
		}
		return err
	}
}

// Stories of rotations, as docs/rotation.md has them.
func TestStoriesOfRotation(t *testing.T) {
	const keys = "holds old ed25519\nholds new ecdsa-p256\nholds thief ed25519\n"
	for _, text := range []string{
		"slot current=old successor=new retireAt=+1h\nsigns new head at -1m\nreads within 1h: accepted",
		"slot current=new previous=old\nsigns old head at -1m\nreads within 1h: accepted",
		"slot current=new\nsigns old head at -1m\nreads within 1h: bad-signature",
		// The leak: what the thief signed before the switch is refused, and so is what the owner signed.
		"slot current=new previous=old rejectBefore=-10m\nsigns old fleet at -11m\nreads within 1h: reject-before",
		"slot current=new previous=old rejectBefore=-10m\nsigns new fleet at -11m\nreads within 1h: reject-before",
		// It does not help against a thief who dates after it, as long as the old key is listed.
		"slot current=new previous=old rejectBefore=-10m\nsigns old fleet at -9m\nreads within 1h: accepted",
		"slot current=new rejectBefore=-10m\nsigns old fleet at -9m\nreads within 1h: bad-signature",
		"slot current=new\nsigns thief revocations at -9m\nreads within 1h: bad-signature",
	} {
		tell(t, keys+text)
	}
}

// The whole table: who signed and how the slot has that key, the compromise switch, and the window, each on its
// boundary and a second either side, for every algorithm and every kind. The checks are made in one order, so that the
// first that fails is the reason.
func TestWhoAcceptsWhat(t *testing.T) {
	type choice struct{ text, reason string }
	slots := []choice{
		{"current=ci", ""},
		{"current=other previous=ci", ""},
		{"current=ci previous=other", ""},
		{"current=junk previous=ci", ""},
		{"current=unknown previous=ci", ""},
		{"previous=ci", ""},
		{"current=other successor=ci retireAt=+1s", ""},
		{"current=other successor=ci retireAt=+0s", "bad-signature"},
		{"current=other successor=ci retireAt=-1s", "bad-signature"},
		{"current=other successor=ci", "bad-signature"},
		{"successor=ci retireAt=+1s", ""},
		{"successor=ci retireAt=+0s", "no-trust-roots"},
		{"successor=ci", "no-trust-roots"},
		{"current=ci retireAt=-1s", ""}, // no successor: nothing is retired
		{"current=other", "bad-signature"},
		{"current=other previous=same", "bad-signature"},
		{"current=junk", "bad-signature"},
		{"current=unknown", "unsupported-algorithm"},
		{"current=unknown previous=other", "bad-signature"},
		{"", "no-trust-roots"},
	}
	times := []struct {
		signed string
		window string
		reason string
	}{
		{"-1h", "1h", ""}, {"-3599s", "1h", ""}, {"-3601s", "1h", ""}, // the window's end, with slack behind it
		{"-3659s", "1h", ""}, {"-3660s", "1h", ""}, {"-3661s", "1h", "stale"},
		{"+0s", "0s", ""}, {"-60s", "0s", ""}, {"-61s", "0s", "stale"},
		{"+59s", "1h", ""}, {"+60s", "1h", ""}, {"+61s", "1h", "future-dated"},
	}
	rejects := []choice{{"", ""}, {"-1s", ""}, {"+0s", ""}, {"+1s", "reject-before"}}
	kinds := []string{KindFleet, KindManifest, KindHead, KindRevocations, KindNonces}
	stories := 0
	for _, algorithms := range [][2]string{
		{pki.AlgorithmEd25519, pki.AlgorithmP256}, {pki.AlgorithmP256, pki.AlgorithmEd25519},
	} {
		holders := fmt.Sprintf("holds ci %s\nholds other %s\nholds same %s\n", algorithms[0], algorithms[1], algorithms[0])
		for _, slot := range slots {
			for _, at := range times {
				for _, reject := range rejects {
					trusted := slot.text
					if reject.text != "" {
						offset, err := time.ParseDuration(strings.TrimPrefix(reject.text, "+"))
						if err != nil {
							t.Fatal(err)
						}
						signed, err := time.ParseDuration(strings.TrimPrefix(at.signed, "+"))
						if err != nil {
							t.Fatal(err)
						}
						trusted += " rejectBefore=" + (signed + offset).String()
					}
					want := "accepted"
					for _, reason := range []string{at.reason, reject.reason, slot.reason} { // the last one found comes first
						if reason != "" {
							want = reason
						}
					}
					for _, kind := range kinds {
						tell(t, fmt.Sprintf("%sslot %s\nsigns ci %s at %s\nreads within %s: %s\n", holders, trusted, kind,
							at.signed, at.window, want))
						stories++
					}
				}
			}
		}
	}
	if least := 2 * len(slots) * len(times) * len(rejects) * len(kinds); stories != least {
		t.Errorf("%d stories, wanted %d", stories, least)
	}
	if t.Failed() {
		return
	}
	// Kinds never pass for one another, whatever the key: the same table holds for none of the other verifiers.
	for _, kind := range kinds {
		for _, other := range slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == kind }) {
			s := &story{t: t, keys: map[string]*pki.PrivateKey{}}
			s.holds([]string{"ci", pki.AlgorithmEd25519})
			s.trusts([]string{"current=ci"})
			s.signs([]string{"ci", kind, "at", "-1m"})
			s.kind = other
			s.told = fmt.Sprintf("a %s, read as %s", kind, other)
			s.reads([]string{"within", "1h:", "parse"})
		}
	}
}

// Tokens have no slack, and only ed25519 keys admit hosts.
func TestWhoseTokensAreTaken(t *testing.T) {
	mint := func(key *pki.PrivateKey) *pki.Token {
		token, err := pki.MintToken(key, pki.Claims{Hostname: "db-01", IssuedAt: pki.At(storyNoon),
			ExpiresAt: pki.At(storyNoon.Add(time.Hour)), Nonce: strings.Repeat("0", 32)})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	s := &story{t: t, keys: map[string]*pki.PrivateKey{}}
	s.holds([]string{"ci", pki.AlgorithmEd25519})
	s.holds([]string{"other", pki.AlgorithmEd25519})
	s.holds([]string{"curve", pki.AlgorithmP256})
	token := mint(s.keys["ci"])
	if _, err := pki.MintToken(s.keys["curve"], token.Claims); !errors.Is(err, pki.ErrKey) {
		t.Errorf("a P-256 key minted a token: %v", err)
	}
	for _, at := range []struct {
		after time.Duration
		err   error
	}{{-time.Second, pki.ErrTokenTime}, {0, nil}, {time.Second, nil}, {time.Hour - time.Second, nil},
		{time.Hour, pki.ErrTokenTime}, {time.Hour + time.Second, pki.ErrTokenTime}} {
		for _, slot := range []struct {
			text string
			err  error
		}{
			{"current=ci", nil}, {"current=other previous=ci", nil}, {"current=other", pki.ErrTokenSignature},
			{"current=curve", pki.ErrTokenSignature}, {"current=curve previous=ci", nil}, {"", pki.ErrTokenTrust},
			{"current=unknown", pki.ErrTokenSignature}, {"current=other successor=ci", pki.ErrTokenSignature},
			{"current=other successor=ci retireAt=+2h", nil},
			{"current=other successor=ci retireAt=-2h", pki.ErrTokenSignature},
			{"current=ci rejectBefore=-1s", nil}, {"current=ci rejectBefore=+0s", nil},
			{"current=ci rejectBefore=+1s", pki.ErrTokenSignature},
		} {
			s.trusts(strings.Fields(slot.text))
			want := at.err
			if want == nil {
				want = slot.err
			}
			if err := token.Verify(s.slot, storyNoon.Add(at.after)); !errors.Is(err, want) {
				t.Errorf("slot %q, %s after issuedAt: %v, wanted %v", slot.text, at.after, err, want)
			}
		}
	}
}
