package fleet

import (
	"fmt"
	"maps"
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
// else see other bytes. What is not known is left out: a signature would cover it although nobody here reads it.
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
	newWriter().omit(known, reflect.TypeFor[T]())
	return pki.Marshal(known)
}

// DropUnknown takes out of the declaration, at every level, the members that are not known, and names them by their
// paths: hosts.*.owner. A signature covers what nobody here reads just as well, and such a member could make the
// document pass for one of another kind.
func (d *Declaration) DropUnknown() []string {
	w := newWriter()
	w.drop(d.doc, reflect.TypeFor[Fleet](), "")
	return w.names()
}

// DropUnknown does for the entries of a list what Declaration.DropUnknown does for a fleet.
func DropUnknown[Entry any](l List, name string) []string {
	w := newWriter()
	w.drop([]any(l), reflect.TypeFor[[]Entry](), name)
	return w.names()
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
type writer struct {
	forms   map[reflect.Type]*form
	dropped map[string]int // paths of members that are not known, with * for the key of a map, and how often each was
}

func newWriter() writer { return writer{forms: map[reflect.Type]*form{}, dropped: map[string]int{}} }

// names are the dropped members, sorted; of several of one path only their number is told.
func (w writer) names() []string {
	names := make([]string, 0, len(w.dropped))
	for _, path := range slices.Sorted(maps.Keys(w.dropped)) {
		if n := w.dropped[path]; n > 1 {
			path = fmt.Sprintf("%s (%d times)", path, n)
		}
		names = append(names, path)
	}
	return names
}

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

// inside calls each for the values below v, with the type and the path of each.
func (w writer) inside(v any, t reflect.Type, path string, each func(v any, t reflect.Type, path string)) {
	switch v := v.(type) {
	case map[string]any:
		if t.Kind() == reflect.Map {
			for _, value := range v {
				each(value, t.Elem(), path+".*")
			}
			return
		}
		for name, member := range w.form(t).members {
			if value, there := v[name]; there {
				each(value, member, path+"."+name)
			}
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return
		}
		for _, value := range v {
			each(value, t.Elem(), path+"[]")
		}
	}
}

// plain is the type below pointers, and whether it has members of its own: not one that is carried as it came.
func plain(t reflect.Type) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	composite := t.Kind() == reflect.Struct || t.Kind() == reflect.Map || t.Kind() == reflect.Slice
	return t, composite && !slices.Contains(opaque, t)
}

// drop takes the members that are not known out of a declared value.
func (w writer) drop(v any, t reflect.Type, path string) {
	t, composite := plain(t)
	if !composite {
		return
	}
	if object, ok := v.(map[string]any); ok && t.Kind() == reflect.Struct {
		f := w.form(t)
		maps.DeleteFunc(object, func(name string, _ any) bool {
			_, ours := f.members[name]
			unknown := !ours && !slices.Contains(f.old, name)
			if unknown {
				w.dropped[strings.TrimPrefix(path+"."+name, ".")]++
			}
			return unknown
		})
	}
	w.inside(v, t, path, w.drop)
}

// omit takes optional members that say nothing out of a value that was encoded.
func (w writer) omit(v any, t reflect.Type) {
	t, composite := plain(t)
	if !composite {
		return
	}
	if object, ok := v.(map[string]any); ok && t.Kind() == reflect.Struct {
		for _, name := range w.form(t).optional {
			if value, there := object[name]; there && saysNothing(name, value) {
				delete(object, name)
			}
		}
	}
	w.inside(v, t, "", func(v any, t reflect.Type, _ string) { w.omit(v, t) })
}

// saysNothing is true for null, and for the empty list of rules that a selector may have.
func saysNothing(name string, value any) bool {
	list, isList := value.([]any)
	return value == nil || name == "and" && isList && len(list) == 0
}
