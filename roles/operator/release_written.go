package operator

import (
	"slices"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// written is the canonical text of a document as the contract's writers write it
// (artifacts.md §1): null or an empty list where what is known was left out, no
// member where an optional one was null, times in their one form, old names of
// members in their new ones. Implementations that encode the typed values anew
// before they hash them would else see other bytes. What is not known stays as it
// was declared.
func written[T any](doc map[string]any, parse func([]byte) (*T, error)) ([]byte, error) {
	declared, err := pki.Marshal(doc)
	if err != nil {
		return nil, err
	}
	typed, err := parse(declared)
	if err != nil {
		return nil, err
	}
	known, err := pki.Marshal(typed)
	if err != nil {
		return nil, err
	}
	var out any
	if err := json.Unmarshal(known, &out); err != nil {
		return nil, err
	}
	return pki.Marshal(withUnknown(out, doc))
}

// optionalMembers are written only when they say something; the last two are the
// old names of a channel edge's ends.
var optionalMembers = []string{
	"pin", "expiresAt", "healthChecks", "rebootPolicy", "systemdFailedUnits", "complianceProbes", "soakSeconds",
	"members", "signatureAlgorithm", "and", "not", "before", "after",
}

// withUnknown adds to what is known the members of declared that are not.
func withUnknown(known, declared any) any {
	switch k := known.(type) {
	case map[string]any:
		d, _ := declared.(map[string]any)
		_, edge := k["gates"]
		for name, value := range d {
			old := edge && (name == "before" || name == "after")
			if have, ok := k[name]; ok {
				k[name] = withUnknown(have, value)
			} else if !old && (value != nil || !slices.Contains(optionalMembers, name)) {
				k[name] = value
			}
		}
		for _, name := range optionalMembers {
			value, ok := k[name]
			if list, isList := value.([]any); ok && (value == nil || name == "and" && isList && len(list) == 0) {
				delete(k, name)
			}
		}
	case []any:
		d, _ := declared.([]any)
		for i := range min(len(k), len(d)) {
			k[i] = withUnknown(k[i], d[i])
		}
	}
	return known
}
