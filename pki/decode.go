package pki

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ErrShape means that the document is JSON and not what was expected.
var ErrShape = errors.New("unexpected shape")

// Decode reads one JSON document into the struct v points to. Keys match by
// exact case, unknown keys are ignored, duplicate keys are refused, integers
// must be written as integers. The tag `shape` states what may be absent:
//
//	R  present and not null
//	N  absent or null means none (a writer writes null)
//	O  absent or null means none (a writer omits it); no tag means O
//	D  absent leaves what v holds already; null is refused
//
// Errors name the JSON path and are ErrShape or one of Canonicalize's.
func Decode(doc []byte, v any) error {
	if err := refuse(doc); err != nil {
		return err
	}
	// Duplicates are left to json.Unmarshal, which looks at the same names again.
	d := jsontext.NewDecoder(bytes.NewBuffer(doc), jsontext.AllowDuplicateNames(true))
	if t := reflect.TypeOf(v); d.PeekKind() == 'n' && t != nil && t.Kind() == reflect.Pointer && !nullable(t.Elem()) {
		return fmt.Errorf("%w: the document is null", ErrShape)
	}
	if err := checkShape(d, reflect.TypeOf(v)); err != nil {
		return err
	}
	if err := json.Unmarshal(doc, v); err != nil {
		if semantic := (*json.SemanticError)(nil); errors.As(err, &semantic) {
			return fmt.Errorf("%w: %w", ErrShape, err)
		}
		return syntaxError(err)
	}
	return nil
}

// Kinded is a signed document that is of one kind among several which the same key signs. Decode refuses it when it
// also has the mark of another kind, or a member `kind` that is not its own: members that are not known are signed
// along, so without this one document could be all kinds at once.
type Kinded interface {
	// DocumentKind is the word that `kind` has where there is one, and the top-level members that only other kinds have.
	DocumentKind() (kind string, foreign []string)
}

type shapeField struct {
	code byte
	typ  reflect.Type
	bit  uint64 // of an R field, in the set of those seen
}

type shape struct {
	fields   map[string]shapeField
	required []string // names of R fields; the bit of the n-th is 1<<n
	kind     string   // of a Kinded document; "" for others
	foreign  []string // members of documents of other kinds
}

// kindOf checks the value of a Kinded document's own `kind`, before which the decoder stands.
func (s *shape) kindOf(d *jsontext.Decoder) error {
	value, err := d.ReadValue()
	if err != nil {
		return syntaxError(err)
	}
	if string(value) != `"`+s.kind+`"` {
		return fmt.Errorf("%w: kind is %.40s, not %q", ErrShape, value, s.kind)
	}
	return nil
}

var shapes sync.Map // reflect.Type -> *shape

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s := &shape{fields: map[string]shapeField{}}
	for _, f := range reflect.VisibleFields(t) {
		tag, tagged := f.Tag.Lookup("json")
		name, _, _ := strings.Cut(tag, ",")
		if !f.IsExported() || name == "-" || f.Anonymous && !tagged {
			continue
		}
		if name == "" {
			name = f.Name
		}
		field := shapeField{code: 'O', typ: f.Type}
		if code := f.Tag.Get("shape"); code != "" {
			field.code = code[0]
		}
		if field.code == 'R' {
			field.bit = 1 << len(s.required)
			s.required = append(s.required, name)
		}
		s.fields[name] = field
	}
	if k, ok := reflect.Zero(t).Interface().(Kinded); ok {
		s.kind, s.foreign = k.DocumentKind()
	}
	stored, _ := shapes.LoadOrStore(t, s)
	return stored.(*shape)
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// leaf tells whether a type reads itself, or has no parts that could be missing.
func leaf(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Array:
	default:
		return true
	}
	p := reflect.PointerTo(t)
	if p.Implements(textUnmarshaler) {
		return true
	}
	_, own := p.MethodByName("UnmarshalJSON")
	_, ownFrom := p.MethodByName("UnmarshalJSONFrom")
	return own || ownFrom || t == reflect.TypeFor[jsontext.Value]()
}

// nullable tells whether null is a value of this type and not the lack of one.
func nullable(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface || t == reflect.TypeFor[jsontext.Value]()
}

// checkShape reads one value of type t from d and finds what json.Unmarshal
// does not look for: absent members and null where there must be a value. A
// value of another kind is left for json.Unmarshal to report.
func checkShape(d *jsontext.Decoder, t reflect.Type) error {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return skip(d) // json.Unmarshal says what is wrong with a nil target
	}
	kind := d.PeekKind()
	switch {
	case leaf(t):
		return skip(d)
	case kind == '{' && t.Kind() == reflect.Struct:
		return checkMembers(d, shapeOf(t))
	case kind == '{' && t.Kind() == reflect.Map:
		return inside(d, func() error {
			if err := skip(d); err != nil {
				return err
			}
			if d.PeekKind() == 'n' && !nullable(t.Elem()) {
				return fmt.Errorf("%w: %s is null", ErrShape, d.StackPointer())
			}
			return checkShape(d, t.Elem())
		})
	case kind == '[' && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
		return inside(d, func() error {
			if d.PeekKind() == 'n' && !nullable(t.Elem()) {
				return fmt.Errorf("%w: %s: null in a list", ErrShape, d.StackPointer())
			}
			return checkShape(d, t.Elem())
		})
	}
	return skip(d)
}

func checkMembers(d *jsontext.Decoder, s *shape) error {
	var seen uint64
	err := inside(d, func() error {
		quoted, err := d.ReadValue()
		if err != nil {
			return syntaxError(err)
		}
		name := quoted[1 : len(quoted)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			if name, err = jsontext.AppendUnquote(nil, quoted); err != nil {
				return syntaxError(err)
			}
		}
		f, known := s.fields[string(name)]
		switch {
		case s.kind == "":
		case slices.Contains(s.foreign, string(name)):
			return fmt.Errorf("%w: a document of kind %s cannot have the member %s", ErrShape, s.kind, name)
		case string(name) == "kind":
			seen |= f.bit
			return s.kindOf(d)
		}
		if !known {
			return skip(d)
		}
		if d.PeekKind() == 'n' && (f.code == 'R' || f.code == 'D') {
			return fmt.Errorf("%w: %s is null", ErrShape, d.StackPointer())
		}
		seen |= f.bit
		return checkShape(d, f.typ)
	})
	if err != nil {
		return err
	}
	for i, name := range s.required {
		if seen&(1<<i) == 0 {
			return fmt.Errorf("%w: %s/%s is missing", ErrShape, d.StackPointer(), name)
		}
	}
	return nil
}

// inside calls each for every element or member between two brackets.
func inside(d *jsontext.Decoder, each func() error) error {
	if _, err := d.ReadToken(); err != nil {
		return syntaxError(err)
	}
	for d.PeekKind() != '}' && d.PeekKind() != ']' {
		if d.PeekKind() == 0 {
			_, err := d.ReadToken()
			return syntaxError(err)
		}
		if err := each(); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	if err != nil {
		return syntaxError(err)
	}
	return nil
}

func skip(d *jsontext.Decoder) error {
	if err := d.SkipValue(); err != nil {
		return syntaxError(err)
	}
	return nil
}
