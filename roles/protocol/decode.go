package protocol

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// DecodeStrict reads a request body into the struct v points to. When it
// cannot, status is the answer of the contract: 400 for what is not JSON, 422
// for JSON of another shape and for a repeated known key, 413 for what is larger
// than any document. What v holds is then of no meaning.
//
// Members that are not known are ignored whatever they are: they may repeat and
// may be numbers that an artifact could not have. Where anything may stand, as in
// a snippet of evidence, an integer beyond 2^53 is taken for the double that the
// canonical form has for it, which is what its sender has signed.
func DecodeStrict(body []byte, v any) (status int, err error) {
	err = DecodeKnown(body, v)
	if checked, ok := v.(interface{ check() error }); ok && err == nil {
		err = checked.check()
	}
	switch {
	case err == nil:
		return 200, nil
	case errors.Is(err, pki.ErrSize):
		return 413, err
	case errors.Is(err, pki.ErrDepth), !jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)):
		return 400, err
	}
	return 422, err
}

// DecodeKnown reads an object that another program wrote. See DecodeStrict for what it ignores.
func DecodeKnown(doc []byte, v any) error {
	err := decodeObject(doc, v)
	if !errors.Is(err, pki.ErrDuplicateKey) && !errors.Is(err, pki.ErrNumber) {
		return err
	}
	// Rare, so that the common case is read once: is it an unknown member?
	known, err := knownMembers(doc, reflect.TypeOf(v))
	if err != nil {
		return err
	}
	return decodeObject(known, v)
}

func decodeObject(doc []byte, v any) error {
	if err := pki.Decode(doc, v); err != nil {
		return err
	}
	if jsontext.Value(doc).Kind() != '{' {
		return fmt.Errorf("%w: not an object", pki.ErrShape)
	}
	return nil
}

// knownMembers is doc without the members that type t does not have. Known ones
// that are repeated stay so, for pki.Decode to refuse.
func knownMembers(doc []byte, t reflect.Type) ([]byte, error) {
	var out bytes.Buffer
	from := jsontext.NewDecoder(bytes.NewReader(doc), jsontext.AllowDuplicateNames(true))
	to := jsontext.NewEncoder(&out, jsontext.AllowDuplicateNames(true))
	if err := copyKnown(to, from, t); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func copyKnown(to *jsontext.Encoder, from *jsontext.Decoder, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	_, readsItself := reflect.PointerTo(t).MethodByName("UnmarshalJSON")
	kind := from.PeekKind()
	switch {
	case t == reflect.TypeFor[jsontext.Value]():
		return copyAny(to, from)
	case readsItself:
	case kind == '{' && t.Kind() == reflect.Struct:
		return copyObject(to, from, jsonMembers(t))
	case kind == '[' && t.Kind() == reflect.Slice:
		return copyList(to, from, t.Elem())
	}
	value, err := from.ReadValue()
	if err != nil {
		return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
	}
	return to.WriteValue(value)
}

func copyObject(to *jsontext.Encoder, from *jsontext.Decoder, members map[string]reflect.Type) error {
	if err := copyToken(to, from); err != nil {
		return err
	}
	for from.PeekKind() == '"' {
		token, err := from.ReadToken()
		if err != nil {
			return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
		}
		name := token.String()
		member, known := members[name]
		if !known {
			if err := from.SkipValue(); err != nil {
				return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
			}
			continue
		}
		if err := to.WriteToken(jsontext.String(name)); err != nil {
			return err
		}
		if err := copyKnown(to, from, member); err != nil {
			return err
		}
	}
	return copyToken(to, from)
}

func copyList(to *jsontext.Encoder, from *jsontext.Decoder, element reflect.Type) error {
	if err := copyToken(to, from); err != nil {
		return err
	}
	for kind := from.PeekKind(); kind != ']' && kind != 0; kind = from.PeekKind() {
		if err := copyKnown(to, from, element); err != nil {
			return err
		}
	}
	return copyToken(to, from)
}

// copyAny copies a value of any shape, its integers beyond 2^53 as doubles.
func copyAny(to *jsontext.Encoder, from *jsontext.Decoder) error {
	value, err := from.ReadValue()
	if err != nil {
		return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
	}
	inside := jsontext.NewDecoder(bytes.NewReader(value), jsontext.AllowDuplicateNames(true))
	for {
		kind := inside.PeekKind()
		if kind == '0' {
			number, err := inside.ReadValue()
			if err != nil {
				return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
			}
			if err := to.WriteValue(exactNumber(number)); err != nil {
				return err
			}
			continue
		}
		token, err := inside.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
		}
		if err := to.WriteToken(token); err != nil {
			return err
		}
	}
}

// maxExactInteger is where bare integers end that a double holds exactly.
const maxExactInteger = 1 << 53

// exactNumber is the number in a form that says that it is a double, when it is
// an integer beyond 2^53.
func exactNumber(number jsontext.Value) jsontext.Value {
	if bytes.ContainsAny(number, ".eE") {
		return number
	}
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil || math.Abs(f) < maxExactInteger {
		return number
	}
	return strconv.AppendFloat(nil, f, 'e', -1, 64)
}

func copyToken(to *jsontext.Encoder, from *jsontext.Decoder) error {
	token, err := from.ReadToken()
	if err != nil {
		return fmt.Errorf("%w: %w", pki.ErrSyntax, err)
	}
	return to.WriteToken(token)
}

// jsonMembers are the members that a struct of the wire has, by their JSON name.
func jsonMembers(t reflect.Type) map[string]reflect.Type {
	members := map[string]reflect.Type{}
	for i := range t.NumField() {
		field := t.Field(i)
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "-" {
			members[name] = field.Type
		}
	}
	return members
}
