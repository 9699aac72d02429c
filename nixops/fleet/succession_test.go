package fleet

import (
	"errors"
	"testing"
	"time"
)

func TestSupersedes(t *testing.T) {
	first := newDraft(t).mustLoad()
	if err := first.Supersedes(nil); err != nil {
		t.Errorf("over nothing: %v", err)
	}
	if err := newDraft(t).mustLoad().Supersedes(first); err != nil {
		t.Errorf("the same release again: %v", err)
	}
	next := newDraft(t).at(signingTime.Add(time.Nanosecond)).mustLoad()
	if err := next.Supersedes(first); err != nil {
		t.Errorf("newer: %v", err)
	}
	if err := first.Supersedes(next); !errors.Is(err, ErrOlder) {
		t.Errorf("older: %v", err)
	}
	twin := newDraft(t)
	twin.fleet.Hosts["web-01"].Tags = []string{"other"}
	if err := twin.mustLoad().Supersedes(first); !errors.Is(err, ErrOlder) {
		t.Errorf("another release of the same instant: %v", err)
	}
}

// TestListsMayNotGoBack_T9: a name is un-revoked by a newer list without it,
// never by an older one or by none.
func TestListsMayNotGoBack_T9(t *testing.T) {
	v1 := func(signed time.Time, change func(*draft)) *Release {
		t.Helper()
		d := newDraft(t).at(signed)
		d.members, d.heads = false, false
		if change != nil {
			change(d)
		}
		return d.mustLoad()
	}
	oldLists := func(d *draft) {
		lists := newDraft(t)
		d.revocations, d.nonces = lists.revocations, lists.nonces
	}
	later, laterStill := signingTime.Add(time.Minute), signingTime.Add(2*time.Minute)
	prev := v1(later, nil)
	for _, c := range []struct {
		name string
		next *Release
		err  error
	}{
		{"newer lists", v1(laterStill, nil), nil},
		{"emptied lists", v1(laterStill, func(d *draft) {
			d.revocations.Revocations, d.nonces.BootstrapNonces = []Revocation{}, []BootstrapNonce{}
		}), nil},
		{"no revocations", v1(laterStill, func(d *draft) { d.revocations = nil }), ErrMembers},
		{"no nonces", v1(laterStill, func(d *draft) { d.nonces = nil }), ErrMembers},
		{"older revocations", v1(laterStill, oldLists), ErrOlder},
		{"same fleet, older lists", v1(later, oldLists), ErrOlder},
		{"same fleet, other list of the same instant",
			v1(later, func(d *draft) { d.revocations.Revocations = []Revocation{} }), ErrOlder},
		{"bound by the fleet itself", newDraft(t).at(laterStill).mustLoad(), nil},
		{"declared absent by the fleet itself", func() *Release {
			d := newDraft(t).at(laterStill)
			d.revocations, d.nonces = nil, nil
			return d.mustLoad()
		}(), nil},
	} {
		if err := c.next.Supersedes(prev); !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
	}
	if err := v1(later, nil).CheckListsAgainst(nil); err != nil {
		t.Errorf("lists over nothing: %v", err)
	}
}
