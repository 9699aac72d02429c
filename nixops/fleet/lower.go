package fleet

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// given says whether an evaluator has filled in `and` or `not`: null and an empty list are as good as absent.
func given(v jsontext.Value) bool {
	return v != nil && v.Kind() != 'n' && !(v.Kind() == '[' && bytes.Equal(bytes.Join(bytes.Fields(v), nil), []byte("[]")))
}

// means says whether a selector of the declaration's language means a host: `not` wins over everything, and `and` over
// the five plain rules.
func (s Selector) means(hostname string, h *Host) (bool, error) {
	if given(s.Not) {
		var other Selector
		if err := pki.Decode(s.Not, &other); err != nil {
			return false, fmt.Errorf("selector: not: %w", err)
		}
		meant, err := other.means(hostname, h)
		return !meant, err
	}
	if given(s.And) {
		var parts []Selector
		if err := pki.Decode(s.And, &parts); err != nil {
			return false, fmt.Errorf("selector: and: %w", err)
		}
		for _, part := range parts {
			if meant, err := part.means(hostname, h); err != nil || !meant {
				return false, err
			}
		}
		return true, nil
	}
	return s.Matches(hostname, h), nil
}

// Lowered is a wave of a policy whose selector is written as a list of hosts.
type Lowered struct {
	Policy string
	Wave   int // its place, from 0
	Hosts  int // that it means
}

// LowerPolicies writes the selectors of policies that use `and` or `not` as lists of hosts, and names them. v1's
// mkFleet leaves both words in the policies, where nobody reads them: the waves that count are resolved already. A
// budget's selector is read, and stays for Check to refuse.
func (d *Declaration) LowerPolicies() ([]Lowered, error) {
	if !d.hasRules() {
		return nil, nil
	}
	f, err := d.Fleet()
	if err != nil {
		return nil, fmt.Errorf("the fleet's declaration: %w", err)
	}
	var lowered []Lowered
	policies := d.member("rolloutPolicies")
	for _, name := range slices.Sorted(maps.Keys(f.RolloutPolicies)) {
		policy, _ := policies[name].(map[string]any)
		waves, _ := policy["waves"].([]any)
		for i, w := range f.RolloutPolicies[name].Waves {
			if !given(w.Selector.And) && !given(w.Selector.Not) {
				continue
			}
			hosts := []any{}
			for _, host := range slices.Sorted(maps.Keys(f.Hosts)) {
				meant, err := w.Selector.means(host, f.Hosts[host])
				if err != nil {
					return nil, fmt.Errorf("wave %d of policy %s: %w", i, name, err)
				}
				if meant {
					hosts = append(hosts, host)
				}
			}
			wave, _ := waves[i].(map[string]any)
			wave["selector"] = map[string]any{"tags": []any{}, "tagsAny": []any{}, "hosts": hosts, "channel": nil, "all": false}
			lowered = append(lowered, Lowered{Policy: name, Wave: i, Hosts: len(hosts)})
		}
	}
	return lowered, nil
}

// hasRules says whether a policy uses `and` or `not` at all: hardly any does, and reading a large fleet takes its time.
func (d *Declaration) hasRules() bool {
	for _, p := range d.member("rolloutPolicies") {
		policy, _ := p.(map[string]any)
		waves, _ := policy["waves"].([]any)
		for _, w := range waves {
			wave, _ := w.(map[string]any)
			selector, _ := wave["selector"].(map[string]any)
			if selector["and"] != nil || selector["not"] != nil {
				return true
			}
		}
	}
	return false
}
