package fleet

import (
	"slices"
	"sort"

	"github.com/go-json-experiment/json/jsontext"
)

// Selector means hosts. It matches when any one of its five rules does: all of
// a non-empty Tags, any of TagsAny, named in Hosts, on Channel, or All. The
// empty selector matches nothing.
type Selector struct {
	Tags    []string `json:"tags" shape:"D"`
	TagsAny []string `json:"tagsAny" shape:"D"`
	Hosts   []string `json:"hosts" shape:"D"`
	Channel *string  `json:"channel" shape:"N"`
	All     bool     `json:"all" shape:"D"`

	// And and Not are of the language in which fleets are written and have no
	// meaning here. They are read only so that Check can find a selector that
	// was not lowered to names: without them it means other hosts, or none.
	And jsontext.Value `json:"and,omitzero" shape:"O"`
	Not jsontext.Value `json:"not,omitzero" shape:"O"`
}

// plain is the selector with the five rules of the signed document alone.
func (s Selector) plain() Selector {
	s.And, s.Not = nil, nil
	return s
}

// Matches reports whether the selector means this host.
func (s Selector) Matches(hostname string, h *Host) bool {
	holds := func(tag string) bool { return slices.Contains(h.Tags, tag) }
	return s.All ||
		s.Channel != nil && *s.Channel == h.Channel ||
		slices.Contains(s.Hosts, hostname) ||
		slices.ContainsFunc(s.TagsAny, holds) ||
		len(s.Tags) > 0 && !slices.ContainsFunc(s.Tags, func(tag string) bool { return !holds(tag) })
}

// Equal tells whether two selectors are the same, since budgets with equal selectors are one budget.
func (s Selector) Equal(o Selector) bool {
	sameChannel := s.Channel == nil && o.Channel == nil ||
		s.Channel != nil && o.Channel != nil && *s.Channel == *o.Channel
	return sameChannel && s.All == o.All && slices.Equal(s.Tags, o.Tags) &&
		slices.Equal(s.TagsAny, o.TagsAny) && slices.Equal(s.Hosts, o.Hosts)
}

// Select lists the hosts that the selector means, sorted by bytes.
func (s Selector) Select(hosts map[string]*Host) []string {
	names := []string{}
	if s.onlyNames() {
		for _, name := range s.Hosts {
			if hosts[name] != nil {
				names = append(names, name)
			}
		}
		sort.Strings(names)
		return slices.Compact(names)
	}
	for name, h := range hosts {
		if s.Matches(name, h) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

func (s Selector) onlyNames() bool {
	return !s.All && s.Channel == nil && len(s.Tags) == 0 && len(s.TagsAny) == 0
}
