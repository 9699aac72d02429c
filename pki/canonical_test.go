package pki

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func readFile(t testing.TB, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCanonicalizeForm(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"keys by UTF-16 units", `{"\ufb33":1,"\ud83d\ude00":2,"\u20ac":3,"1":4,"\r":5}`,
			"{\"\\r\":5,\"1\":4,\"\u20ac\":3,\"\U0001f600\":2,\"\ufb33\":1}"},
		{"keys recursively, lists as they are", `[{"b":[3,1],"a":{"d":0,"c":0}}]`, `[{"a":{"c":0,"d":0},"b":[3,1]}]`},
		{"white space", " {\t\"a\" :\r\n [ ] } \n", `{"a":[]}`},
		{"minus zero", `[-0,-0.0,-0e5]`, `[0,0,0]`},
		{"numbers as ECMAScript", `[1.0,1e2,1e21,1e-7,0.000001,333333333.33333329,4.50,2e-3,1E30]`,
			`[1,100,1e+21,1e-7,0.000001,333333333.3333333,4.5,0.002,1e+30]`},
		{"limits of exact integers", `[9007199254740992,-9007199254740992]`, `[9007199254740992,-9007199254740992]`},
		{"limits of doubles", `[1.7976931348623157e308,5e-324,1e-400]`, `[1.7976931348623157e+308,5e-324,0]`},
		{"escapes", `"\u0008\u0009\u000a\u000c\u000d\u0000\u001F\u002f\/\u0022\u005c\u007f"`,
			`"\b\t\n\f\r\u0000\u001f//\"\\` + "\x7f\""},
		{"what JavaScript or HTML would escape", `"\u2028<\u003e&\u00e9"`, "\"\u2028<>&\u00e9\""},
		{"bare values", ` null `, `null`},
		{"empty", `{}`, `{}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := []byte(c.in)
			got, err := Canonicalize(in)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if string(in) != c.in {
				t.Error("the input was changed")
			}
		})
	}
}

// hugeObject has n members.
func hugeObject(n int) string {
	var b strings.Builder
	b.WriteString(`{"":0`)
	for i := range n - 1 {
		b.WriteString(`,"` + strconv.Itoa(i) + `":0`)
	}
	return b.String() + "}"
}

func TestCanonicalizeRefuses(t *testing.T) {
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"nothing", "", ErrSyntax},
		{"truncated", `{"a":`, ErrSyntax},
		{"two values", `{} {}`, ErrSyntax},
		{"comment", `{}//`, ErrSyntax},
		{"byte order mark", "\ufeff{}", ErrSyntax},
		{"single quotes", `{'a':1}`, ErrSyntax},
		{"leading zero", `[01]`, ErrSyntax},
		{"long leading zero", `[00000000000000001]`, ErrSyntax},
		{"plus", `[+1]`, ErrSyntax},
		{"minus alone", `[-]`, ErrSyntax},
		{"raw newline in a string", "\"a\nb\"", ErrSyntax},
		{"not a number", `[NaN]`, ErrSyntax},
		{"duplicate key", `{"a":1,"b":2,"a":1}`, ErrDuplicateKey},
		{"duplicate key in two spellings", `{"a":1,"\u0061":2}`, ErrDuplicateKey},
		{"duplicate key deep inside", `[{"x":{"k":[],"k":[]}}]`, ErrDuplicateKey},
		{"invalid UTF-8", "\"\xff\"", ErrEncoding},
		{"invalid UTF-8 in a key", "{\"\xc3\x28\":1}", ErrEncoding},
		{"overlong UTF-8", "\"\xc0\xaf\"", ErrEncoding},
		{"surrogate as UTF-8", "\"\xed\xa0\x80\"", ErrEncoding},
		{"lone high surrogate", `"\ud800"`, ErrEncoding},
		{"lone high surrogate before text", `["\ud800abc"]`, ErrEncoding},
		{"lone low surrogate", `{"\udfaa":0}`, ErrEncoding},
		{"swapped surrogates", `"\udd1e\ud834"`, ErrEncoding},
		{"integer beyond 2^53, T14", `[9007199254740993]`, ErrNumber},
		{"negative integer beyond 2^53, T14", `[-9007199254740993]`, ErrNumber},
		{"integer beyond 64 bits, T14", `[100000000000000000000]`, ErrNumber},
		{"overflow", `[1e400]`, ErrNumber},
		{"negative overflow", `{"a":-1e309}`, ErrNumber},
		{"long overflow", `[` + strings.Repeat("9", 400) + `.5]`, ErrNumber},
		{"depth", nest(MaxDepth + 1), ErrDepth},
		{"depth of objects", strings.Repeat(`{"a":`, MaxDepth+1) + "1" + strings.Repeat("}", MaxDepth+1), ErrDepth},
		{"depth without an end", strings.Repeat("[", 1<<20), ErrDepth},
		{"members", hugeObject(MaxMembers + 1), ErrSize},
		{"members deep inside", `[{"a":[` + hugeObject(MaxMembers+1) + `]}]`, ErrSize},
		{"ends before beginnings", `]]}}{"a":1}`, ErrSyntax},
		{"size", `"` + strings.Repeat("a", MaxDocument) + `"`, ErrSize},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Canonicalize([]byte(c.in))
			if !errors.Is(err, c.want) {
				t.Errorf("got %.80q, %v; want %v", got, err, c.want)
			}
			if _, err := CanonicalHash([]byte(c.in)); !errors.Is(err, c.want) {
				t.Errorf("hash: %v; want %v", err, c.want)
			}
		})
	}
	if _, err := Canonicalize([]byte(nest(MaxDepth))); err != nil {
		t.Errorf("depth %d: %v", MaxDepth, err)
	}
	// Members are counted by object, and a colon in a string is none.
	if err := refuse([]byte(`[` + hugeObject(MaxMembers/2+1) + `,` + hugeObject(MaxMembers/2+1) + `,{"` +
		strings.Repeat(":", MaxMembers+1) + `":0}]`)); err != nil {
		t.Error(err)
	}
	// Brackets and digits inside strings are text.
	if _, err := Canonicalize([]byte(`["` + strings.Repeat("[", 1000) + `","9007199254740993","\"1e400"]`)); err != nil {
		t.Error(err)
	}
}

// Two documents that differ only in integers a double cannot tell apart must
// not have one canonical form.
func TestNoTwoIntegersShareAForm_T14(t *testing.T) {
	seen := map[string]string{}
	for n := int64(1<<53 - 3); n <= 1<<53+6; n++ {
		in := strconv.FormatInt(n, 10)
		got, err := Canonicalize([]byte(in))
		if err != nil {
			continue
		}
		if other, ok := seen[string(got)]; ok {
			t.Errorf("%s and %s both become %s", other, in, got)
		}
		seen[string(got)] = in
	}
	if len(seen) != 4 {
		t.Errorf("%d integers passed, want 2^53-3 to 2^53", len(seen))
	}
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(struct {
		Z    []string       `json:"z"`
		A    map[string]int `json:"a"`
		N    *string        `json:"n"`
		O    *string        `json:"o,omitzero"`
		Text string         `json:"text"`
	}{Text: "<\u2028>"})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"a":{},"n":null,"text":"<` + "\u2028" + `>","z":[]}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, v := range []any{"\xff", int64(1<<53 + 1), map[string]any{"f": func() {}}} {
		if got, err := Marshal(v); err == nil {
			t.Errorf("%T was written as %s", v, got)
		}
	}
}

func TestVectorsJCS(t *testing.T) {
	inputs, err := filepath.Glob("testdata/vectors/jcs/input/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no vectors", err)
	}
	for _, path := range inputs {
		want := readFile(t, "vectors", "jcs", "output", filepath.Base(path))
		in, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Canonicalize(in)
		if err != nil || !bytes.Equal(got, bytes.TrimSuffix(want, []byte("\n"))) {
			t.Errorf("%s: %v\ngot  %s\nwant %s", filepath.Base(path), err, got, want)
		}
	}
}

// refusedOnPurpose are documents that JSONTestSuite says a parser must (y_) or
// may (i_) accept and that we refuse.
var refusedOnPurpose = map[string]error{
	// Two readers could take two different values.
	"y_object_duplicated_key_and_value.json": ErrDuplicateKey,
	// A double holds neither these integers nor these magnitudes.
	"i_number_too_big_pos_int.json":   ErrNumber,
	"i_number_neg_int_huge_exp.json":  ErrNumber,
	"i_number_real_neg_overflow.json": ErrNumber,
	// No text: surrogates that are not pairs, bytes that are not UTF-8.
	"i_object_key_lone_2nd_surrogate.json":                ErrEncoding,
	"i_string_1st_valid_surrogate_2nd_invalid.json":       ErrEncoding,
	"i_string_UTF-8_invalid_sequence.json":                ErrEncoding,
	"i_string_incomplete_surrogate_and_escape_valid.json": ErrEncoding,
	"i_string_incomplete_surrogates_escape_valid.json":    ErrEncoding,
	"i_string_invalid_surrogate.json":                     ErrEncoding,
	"i_string_inverted_surrogates_U+1D11E.json":           ErrEncoding,
	"i_string_lone_second_surrogate.json":                 ErrEncoding,
	"i_string_not_in_unicode_range.json":                  ErrEncoding,
	"i_string_overlong_sequence_6_bytes.json":             ErrEncoding,
	"i_string_truncated-utf-8.json":                       ErrEncoding,
	"i_string_utf16LE_no_BOM.json":                        ErrEncoding,
	// RFC 8785 has no byte order mark.
	"i_structure_UTF-8_BOM_empty_object.json": ErrSyntax,
}

func TestVectorsJSONTestSuite(t *testing.T) {
	files, err := filepath.Glob("testdata/vectors/jsontestsuite/test_parsing/*.json")
	if err != nil || len(files) < 150 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		in, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Canonicalize(in)
		want, refused := refusedOnPurpose[name]
		switch {
		case refused && !errors.Is(err, want):
			t.Errorf("%s: got %.60q, %v; want %v", name, got, err, want)
		case !refused && name[0] == 'n' && err == nil:
			t.Errorf("%s: accepted as %.60q", name, got)
		case !refused && name[0] != 'n' && err != nil:
			t.Errorf("%s: %v", name, err)
		case err == nil:
			assertSameValue(t, name, in, got)
		}
	}
}

// assertSameValue: another decoder reads the same from both texts.
func assertSameValue(t *testing.T, name string, in, canonical []byte) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal(in, &a); err != nil {
		t.Fatal(name, err)
	}
	if err := json.Unmarshal(canonical, &b); err != nil {
		t.Fatal(name, err)
	}
	before, _ := json.Marshal(a)
	after, _ := json.Marshal(b)
	// Minus zero is the one value that changes.
	if !bytes.Equal(bytes.ReplaceAll(before, []byte("-0"), []byte("0")),
		bytes.ReplaceAll(after, []byte("-0"), []byte("0"))) {
		t.Errorf("%s: %s became %s", name, before, after)
	}
}

func TestVectorsNaughtyStrings(t *testing.T) {
	var naughty []string
	if err := json.Unmarshal(readFile(t, "vectors", "blns", "blns.json"), &naughty); err != nil || len(naughty) < 500 {
		t.Fatalf("%d strings, %v", len(naughty), err)
	}
	for _, s := range naughty {
		in, err := json.Marshal(map[string]string{s: s}) // escapes <, >, & and U+2028
		if err != nil {
			t.Fatal(err)
		}
		canonical, err := Canonicalize(in)
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		var back map[string]string
		if err := Decode(canonical, &back); err != nil || len(back) != 1 || back[s] != s {
			t.Errorf("%q: read back as %q, %v", s, back, err)
		}
		// The parsers of people's input say no without a panic.
		ParseTimestamp(s)
		ParseHostKey(s)
		ParsePrivateKey([]byte(s))
		if _, err := ParseToken([]byte(s)); err == nil {
			t.Errorf("token %q", s)
		}
		if _, _, err := ParseTrust([]byte(s)); err == nil {
			t.Errorf("trust %q", s)
		}
		if _, err := ParseCSR([]byte(s)); err == nil {
			t.Errorf("certificate request %q", s)
		}
	}
}

// largeInteger: RFC 8785 writes numbers below 1e21 without an exponent.
var largeInteger = regexp.MustCompile(`[0-9]{16,21}`)

// A number with a fraction or an exponent says that it is a double. The one that
// RFC 8785 writes as a bare integer beyond 2^53 is refused when that form is
// read: such a document is never published, since what is signed is read first.
func TestLargeNumbersByExponent(t *testing.T) {
	for in, want := range map[string]string{
		"1e15": "1000000000000000", "9.007199254740992e15": "9007199254740992",
		"1e16": "10000000000000000", "9007199254740993.0": "9007199254740992", "1e20": "100000000000000000000",
		"1e21": "1e+21", "123456789012345678901234.5": "1.2345678901234569e+23",
	} {
		got, err := Canonicalize([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
		_, err = CanonicalHash(got)
		if refused := errors.Is(err, ErrNumber); refused != (in == "1e16" || in == "1e20") {
			t.Errorf("%s, the form of %s: %v", got, in, err)
		}
	}
}

func FuzzCanonicalize(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":[1.0,-0,1e21]}`, `"\ud83d\ude00\u0000"`, `{"a":1,"a":2}`, `[9007199254740993]`,
		`[1e400]`, `[1e20]`, "\xff", `[[[[`, `{"\u0061":1,"a":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		once, err := Canonicalize(in)
		if !bytes.Equal(in, before) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if once != nil {
				t.Fatal("bytes beside an error")
			}
			return
		}
		twice, err := Canonicalize(once)
		if errors.Is(err, ErrNumber) && largeInteger.Match(once) {
			return // see TestLargeNumbersByExponent
		}
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q became %q, %v", in, once, twice, err)
		}
		var standard any
		if json.Unmarshal(in, &standard) != nil {
			t.Fatalf("%q is not JSON for encoding/json", in)
		}
	})
}
