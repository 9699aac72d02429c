package fleet

import (
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// written is the canonical text of a document as the contract's writers write it (artifacts.md §1): null or an empty
// list where what is known was left out, no member where an optional one was null, times in their one form, old
// names of members in their new ones. Implementations that encode the typed values anew before they hash them would
// else see other bytes. What is not known stays as it was declared.
func written[T any](doc map[string]any, parse func([]byte) (*T, error)) ([]byte, error) {
	declared, err := pki.Marshal(doc)
	if err != nil {
		return nil, err
	}
	typed, err := parse(declared)
	if err != nil {
		return nil, err
	}
	encoded, err := pki.Marshal(typed)
	if err != nil {
		return nil, err
	}
	var known any
	if err := json.Unmarshal(encoded, &known); err != nil {
		return nil, err
	}
	w := writer{forms: map[reflect.Type]*form{}}
	return pki.Marshal(w.withUnknown(known, doc, reflect.TypeFor[T]()))
}

// form is what the tags of a struct say of its members.
type form struct {
	members  map[string]reflect.Type
	optional []string // written only when they say something
	old      []string // names that a member had before
}

// renamed is a struct of which members had other names.
type renamed interface{ oldNames() []string }

// writer walks a document beside its type.
type writer struct{ forms map[reflect.Type]*form }

func (w writer) form(t reflect.Type) *form {
	if f, ok := w.forms[t]; ok {
		return f
	}
	f := &form{members: map[string]reflect.Type{}}
	for field := range t.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		f.members[name] = field.Type
		if strings.Contains(options, "omitzero") {
			f.optional = append(f.optional, name)
		}
	}
	if r, ok := reflect.Zero(t).Interface().(renamed); ok {
		f.old = r.oldNames()
	}
	w.forms[t] = f
	return f
}

var opaque = []reflect.Type{reflect.TypeFor[pki.Timestamp](), reflect.TypeFor[jsontext.Value]()}

// withUnknown adds to what is known the members of declared that are not.
func (w writer) withUnknown(known, declared any, t reflect.Type) any {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if slices.Contains(opaque, t) {
		return known
	}
	switch k := known.(type) {
	case map[string]any:
		d, _ := declared.(map[string]any)
		if t.Kind() == reflect.Map {
			for name := range k {
				k[name] = w.withUnknown(k[name], d[name], t.Elem())
			}
			return k
		}
		w.members(k, d, w.form(t))
	case []any:
		d, _ := declared.([]any)
		for i := range min(len(k), len(d)) {
			k[i] = w.withUnknown(k[i], d[i], t.Elem())
		}
	}
	return known
}

// members completes one object of which the form is known.
func (w writer) members(known, declared map[string]any, f *form) {
	for name, value := range declared {
		member, ours := f.members[name]
		have, there := known[name]
		switch {
		case ours && there:
			known[name] = w.withUnknown(have, value, member)
		case !ours && !slices.Contains(f.old, name):
			known[name] = value
		}
	}
	for _, name := range f.optional {
		if value, there := known[name]; there && saysNothing(name, value) {
			delete(known, name)
		}
	}
}

// saysNothing is true for null, and for the empty list of rules that a selector may have.
func saysNothing(name string, value any) bool {
	list, isList := value.([]any)
	return value == nil || name == "and" && isList && len(list) == 0
}
