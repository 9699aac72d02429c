package pki

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// KeySlot is one signing duty and the keys that may hold it, in the order in
// which they are tried.
type KeySlot struct {
	Current      *PublicKey `json:"current" shape:"N"`
	Previous     *PublicKey `json:"previous" shape:"N"`
	Successor    *PublicKey `json:"successor" shape:"N"`
	RetireAt     *Timestamp `json:"retireAt" shape:"N"`
	RejectBefore *Timestamp `json:"rejectBefore" shape:"N"`
}

// Active lists the keys that may have signed: current, previous, and the
// successor while now is before retireAt. A nil slot has none.
func (s *KeySlot) Active(now time.Time) []PublicKey {
	if s == nil {
		return nil
	}
	var keys []PublicKey
	for _, k := range []*PublicKey{s.Current, s.Previous} {
		if k != nil {
			keys = append(keys, *k)
		}
	}
	if s.Successor != nil && s.RetireAt != nil && now.Before(s.RetireAt.Time) {
		keys = append(keys, *s.Successor)
	}
	return keys
}

// RotationDue tells whether a successor is named and its time has come.
func (s *KeySlot) RotationDue(now time.Time) bool {
	return s != nil && s.Successor != nil && s.RetireAt != nil && !now.Before(s.RetireAt.Time)
}

// Trust is trust.json: whom a machine believes. It is local and unsigned.
type Trust struct {
	SchemaVersion  uint32   `json:"schemaVersion" shape:"R"`
	CIReleaseKey   KeySlot  `json:"ciReleaseKey" shape:"R"`
	CacheKeys      []string `json:"cacheKeys" shape:"D"`
	OrgRootKey     *KeySlot `json:"orgRootKey" shape:"N"`
	RootCAPEM      *string  `json:"rootCaPem" shape:"N"`
	IssuanceCAPEMs []string `json:"issuanceCaPems" shape:"D"`
}

// trustSpellings are the other names of the PEM members, which the NixOS
// modules in the field write.
type trustSpellings struct {
	RootCAPEM *string   `json:"rootCAPem" shape:"N"`
	Issuers   *[]string `json:"issuanceCAPems" shape:"D"`
	// The first spelling once more, to tell an empty list from no list.
	First *[]string `json:"issuanceCaPems" shape:"D"`
}

var (
	trustMembers = []string{"schemaVersion", "ciReleaseKey", "cacheKeys", "orgRootKey", "rootCaPem", "rootCAPem",
		"issuanceCaPems", "issuanceCAPems"}
	slotMembers = []string{"current", "previous", "successor", "retireAt", "rejectBefore"}
	keyMembers  = []string{"algorithm", "public"}
)

// ParseTrust reads trust.json. A schema other than 1 is refused, and so are the
// two spellings of a member when they disagree. The warnings name members that
// nothing reads, so that a misspelt one is heard of, and keys without effect.
func ParseTrust(data []byte) (*Trust, []string, error) {
	var t Trust
	if err := Decode(data, &t); err != nil {
		return nil, nil, fmt.Errorf("trust file: %w", err)
	}
	if t.SchemaVersion != 1 {
		return nil, nil, fmt.Errorf("trust file: schemaVersion %d, only 1 is known", t.SchemaVersion)
	}
	var other trustSpellings
	if err := Decode(data, &other); err != nil {
		return nil, nil, fmt.Errorf("trust file: %w", err)
	}
	if t.RootCAPEM != nil && other.RootCAPEM != nil && *t.RootCAPEM != *other.RootCAPEM {
		return nil, nil, fmt.Errorf("trust file: %w: rootCaPem and rootCAPem disagree", ErrShape)
	}
	if other.First != nil && other.Issuers != nil && !slices.Equal(*other.First, *other.Issuers) {
		return nil, nil, fmt.Errorf("trust file: %w: issuanceCaPems and issuanceCAPems disagree", ErrShape)
	}
	if t.RootCAPEM == nil {
		t.RootCAPEM = other.RootCAPEM
	}
	if other.Issuers != nil {
		t.IssuanceCAPEMs = *other.Issuers
	}
	return &t, append(trustWarnings(data), t.ignored()...), nil
}

// ignored names what is read and then has no effect.
func (t *Trust) ignored() []string {
	var warnings []string
	for _, s := range []struct {
		name string
		slot *KeySlot
	}{{"ciReleaseKey", &t.CIReleaseKey}, {"orgRootKey", t.OrgRootKey}} {
		if s.slot == nil {
			continue
		}
		if s.slot.Successor != nil && s.slot.RetireAt == nil {
			warnings = append(warnings, fmt.Sprintf("%q is ignored without retireAt", s.name+".successor"))
		}
		for i, k := range []*PublicKey{s.slot.Current, s.slot.Previous, s.slot.Successor} {
			if k != nil && !k.Usable() {
				warnings = append(warnings, fmt.Sprintf("%q verifies nothing: no %s key, nor any other known here",
					s.name+"."+slotMembers[i], k.Algorithm))
			}
		}
	}
	return warnings
}

// LoadTrust reads the file at path, at most 1 MiB, with ParseTrust.
func LoadTrust(path string) (*Trust, []string, error) {
	data, err := readBounded(path, maxSecret)
	if err != nil {
		return nil, nil, fmt.Errorf("trust file: %w", err)
	}
	t, warnings, err := ParseTrust(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, warnings, nil
}

// Marshal writes the PEM members under both their spellings.
func (t *Trust) Marshal() ([]byte, error) {
	both := struct {
		Trust
		Root    *string  `json:"rootCAPem"`
		Issuers []string `json:"issuanceCAPems"`
	}{*t, t.RootCAPEM, t.IssuanceCAPEMs}
	doc, err := json.Marshal(both)
	if err != nil {
		return nil, fmt.Errorf("encode trust file: %w", err)
	}
	v := jsontext.Value(doc)
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		return nil, fmt.Errorf("encode trust file: %w", err)
	}
	return append(v, '\n'), nil
}

// trustWarnings looks at every object of the file for names that are not read.
func trustWarnings(data []byte) []string {
	var warnings []string
	members := func(path string, raw jsontext.Value, known []string) map[string]jsontext.Value {
		var m map[string]jsontext.Value
		if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) || json.Unmarshal(raw, &m) != nil {
			return nil
		}
		for name := range m {
			if !slices.Contains(known, name) {
				warnings = append(warnings, unknownMember(path+name, known))
			}
		}
		return m
	}
	top := members("", data, trustMembers)
	for _, slot := range []string{"ciReleaseKey", "orgRootKey"} {
		keys := members(slot+".", top[slot], slotMembers)
		for _, key := range slotMembers[:3] {
			members(slot+"."+key+".", keys[key], keyMembers)
		}
	}
	sort.Strings(warnings)
	return warnings
}

func unknownMember(name string, known []string) string {
	last := name[strings.LastIndexByte(name, '.')+1:]
	for _, k := range known {
		if strings.EqualFold(k, last) || oneApart(strings.ToLower(k), strings.ToLower(last)) {
			return fmt.Sprintf("%q is not read; did you mean %q?", name, k)
		}
	}
	return fmt.Sprintf("%q is not read", name)
}

// oneApart tells whether a and b differ by one letter added, lost or changed, or by two swapped.
func oneApart(a, b string) bool {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 1 && len(b) <= 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}
