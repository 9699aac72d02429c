package pki

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

type shapeInner struct {
	Name string  `json:"name" shape:"R"`
	Note *string `json:"note" shape:"N"`
}

type shapeBase struct {
	ID string `json:"id" shape:"R"`
}

type shapeOuter struct {
	shapeBase
	Count   uint32                `json:"count" shape:"R"`
	When    *Timestamp            `json:"when" shape:"O"`
	Mode    string                `json:"mode" shape:"D"`
	List    []shapeInner          `json:"list" shape:"D"`
	Map     map[string]shapeInner `json:"map" shape:"R"`
	Inner   *shapeInner           `json:"inner" shape:"N"`
	Raw     jsontext.Value        `json:"raw" shape:"O"`
	RawMap  map[string]jsontext.Value
	Nullish []*string `json:"nullish"`
}

const shapeGood = `{"id":"x","count":7,"map":{}}`

func TestDecodeShape(t *testing.T) {
	for _, c := range []struct {
		name, doc, mentions string // mentions "" when it must pass
	}{
		{"least", shapeGood, ""},
		{"null where none is meant", `{"id":"x","count":7,"map":{},"when":null,"inner":null,"raw":null}`, ""},
		{"unknown members", `{"id":"x","count":7,"map":{},"future":{"count":"no"}}`, ""},
		{"null in what may hold it", `{"id":"x","count":7,"map":{},"RawMap":{"a":null},"nullish":[null]}`, ""},
		{"escaped name", `{"\u0069d":"x","count":7,"map":{}}`, ""},

		{"required absent", `{"id":"x","map":{}}`, "/count"},
		{"required of an embedded struct absent", `{"count":7,"map":{}}`, "/id"},
		{"required null", `{"id":null,"count":7,"map":{}}`, "/id"},
		{"required in another case", `{"ID":"x","count":7,"map":{}}`, "/id"},
		{"default null", `{"id":"x","count":7,"map":{},"mode":null}`, "/mode"},
		{"required in a list absent", `{"id":"x","count":7,"map":{},"list":[{"name":"a"},{}]}`, "/list/1/name"},
		{"required in a map absent", `{"id":"x","count":7,"map":{"a/b":{}}}`, "/map/a~1b/name"},
		{"required behind a pointer absent", `{"id":"x","count":7,"map":{},"inner":{"note":"n"}}`, "/inner/name"},
		{"null in a list", `{"id":"x","count":7,"map":{},"list":[null]}`, "/list: null in a list"},
		{"null in a map", `{"id":"x","count":7,"map":{"a":null}}`, "/map/a"},
		{"list for a map", `{"id":"x","count":7,"map":[]}`, "/map"},
		{"text for a number", `{"id":"x","count":"7","map":{}}`, "/count"},
		{"fraction", `{"id":"x","count":7.0,"map":{}}`, "/count"},
		{"exponent", `{"id":"x","count":7e0,"map":{}}`, "/count"},
		{"negative", `{"id":"x","count":-7,"map":{}}`, "/count"},
		{"beyond 32 bits", `{"id":"x","count":4294967296,"map":{}}`, "/count"},
		{"bad time", `{"id":"x","count":7,"map":{},"when":"yesterday"}`, "/when"},
		{"number for a time", `{"id":"x","count":7,"map":{},"when":7}`, "/when"},
		{"null document", `null`, "null"},
		{"list document", `[]`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v shapeOuter
			err := Decode([]byte(c.doc), &v)
			if c.name == "list document" {
				if !errors.Is(err, ErrShape) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if c.mentions == "" {
				if err != nil || v.ID != "x" || v.Count != 7 {
					t.Fatalf("got %+v, %v", v, err)
				}
				return
			}
			if !errors.Is(err, ErrShape) || !strings.Contains(err.Error(), c.mentions) {
				t.Fatalf("got %v, want ErrShape naming %s", err, c.mentions)
			}
		})
	}
}

func TestDecodeKeepsPresetDefaults(t *testing.T) {
	v := shapeOuter{Mode: "auto"}
	if err := Decode([]byte(shapeGood), &v); err != nil || v.Mode != "auto" {
		t.Errorf("got %q, %v", v.Mode, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		want      error
	}{
		{"empty", ``, ErrSyntax},
		{"truncated", shapeGood[:len(shapeGood)-1], ErrSyntax},
		{"half a name", `{"id":"x","cou`, ErrSyntax},
		{"trailing", shapeGood + `{}`, ErrSyntax},
		{"duplicate of a known key", `{"id":"x","id":"y","count":7,"map":{}}`, ErrDuplicateKey},
		{"duplicate in another spelling", `{"id":"x","\u0069d":"y","count":7,"map":{}}`, ErrDuplicateKey},
		{"duplicate of an unknown key", `{"id":"x","count":7,"map":{},"z":1,"z":1}`, ErrDuplicateKey},
		{"duplicate inside an unknown key", `{"id":"x","count":7,"map":{},"z":{"a":1,"a":1}}`, ErrDuplicateKey},
		{"duplicate map key", `{"id":"x","count":7,"map":{"a":{"name":"1"},"a":{"name":"2"}}}`, ErrDuplicateKey},
		{"invalid UTF-8", "{\"id\":\"\xff\",\"count\":7,\"map\":{}}", ErrEncoding},
		{"lone surrogate in an unknown key", `{"id":"x","count":7,"map":{},"z":"\ud800"}`, ErrEncoding},
		{"big integer in an unknown key", `{"id":"x","count":7,"map":{},"z":9007199254740993}`, ErrNumber},
		{"depth", strings.Repeat("[", 4096), ErrDepth},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Decode([]byte(c.doc), &shapeOuter{}); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if err := Decode([]byte(shapeGood), nil); err == nil {
		t.Error("decoded into nothing")
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{shapeGood,
		`{"id":"x","count":7,"map":{"a":{"name":"n"}},"list":[{"name":"m","note":null}],"when":"2026-03-01T12:00:00Z"}`,
		`null`, `{"id":"x","id":"y"}`, `{"\u0069d":1`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var v shapeOuter
		if Decode(doc, &v) != nil {
			return
		}
		if v.ID == "" && !strings.Contains(string(doc), `""`) {
			t.Fatalf("%q passed without an id", doc)
		}
		canonical, err := Canonicalize(doc)
		if err != nil {
			t.Fatalf("%q decodes and has no canonical form: %v", doc, err)
		}
		var again shapeOuter
		if err := Decode(canonical, &again); err != nil || again.ID != v.ID || again.Count != v.Count {
			t.Fatalf("%q reads as %+v, its canonical form as %+v, %v", doc, v, again, err)
		}
	})
}
