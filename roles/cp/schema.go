package cp

import (
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// schemas are JSON Schemas (2020-12, the dialect of OpenAPI 3.1) of wire types, by
// the name of the type. They are read from the tags `json` and `shape` (pki.Decode
// explains the second).
type schemas map[string]any

type schema = map[string]any

// written in another way than their Go type.
var wireForms = map[reflect.Type]schema{
	reflect.TypeFor[pki.Timestamp]():       {"type": "string", "format": "date-time"},
	reflect.TypeFor[protocol.OffsetTime](): {"type": "string", "format": "date-time"},
	reflect.TypeFor[protocol.TraceTime]():  {"type": "string", "format": "date-time"},
	reflect.TypeFor[jsontext.Value]():      {},
}

// of is the schema of a type; a struct is a reference to its own.
func (s schemas) of(t reflect.Type) schema {
	if form, ok := wireForms[t]; ok {
		return form
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Struct:
		if _, known := s[t.Name()]; !known {
			s[t.Name()] = schema{} // it may contain itself
			s[t.Name()] = s.object(t)
		}
		return schema{"$ref": "#/components/schemas/" + t.Name()}
	case reflect.Slice, reflect.Array:
		return schema{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return schema{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return schema{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return schema{"type": "integer", "minimum": 0}
	case reflect.Float32, reflect.Float64:
		return schema{"type": "number"}
	case reflect.String:
		return schema{"type": "string"}
	}
	return schema{}
}

func (s schemas) object(t reflect.Type) schema {
	members, required := schema{}, []string{}
	s.members(t, members, &required)
	out := schema{"type": "object", "properties": members}
	if len(required) > 0 {
		slices.Sort(required)
		out["required"] = required
	}
	return out
}

// members collects the members of a struct and of those embedded in it.
func (s schemas) members(t reflect.Type, members schema, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
			continue
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			s.members(f.Type, members, required)
			continue
		case name == "":
			name = f.Name
		}
		member := s.of(f.Type)
		switch f.Tag.Get("shape") {
		case "R":
			*required = append(*required, name)
		case "N", "O":
			member = schema{"anyOf": []any{member, schema{"type": "null"}}}
		}
		members[name] = member
	}
}
