package explore

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"nixfleet/roles/rollout"
)

// rows are what a store holds: each row in its last form, by its key.
type rows struct {
	rollouts    map[[2]string]rollout.Rollout
	hosts       map[[2]string]rollout.HostRecord
	dispatches  map[string]rollout.Dispatch
	quarantines map[[2]string]rollout.Quarantine
}

func dispatchKey(d *rollout.Dispatch) string {
	return d.Host + " " + d.Intent + " " + d.DispatchedAt.Format(time.RFC3339Nano)
}

func rowsOf(s rollout.State) *rows {
	r := &rows{
		map[[2]string]rollout.Rollout{}, map[[2]string]rollout.HostRecord{}, map[string]rollout.Dispatch{},
		map[[2]string]rollout.Quarantine{},
	}
	slices.Reverse(s.Hosts) // an earlier round of the same intent comes last
	r.apply(rollout.Change{Rollouts: s.Rollouts, Hosts: s.Hosts, Dispatches: s.Dispatches, Quarantines: s.Quarantines})
	return r
}

func (r *rows) clone() *rows {
	return &rows{maps.Clone(r.rollouts), maps.Clone(r.hosts), maps.Clone(r.dispatches), maps.Clone(r.quarantines)}
}

func (r *rows) apply(c rollout.Change) {
	for _, x := range c.Rollouts {
		r.rollouts[[2]string{x.Channel, x.Intent}] = x
	}
	for _, x := range c.Hosts {
		r.hosts[[2]string{x.Host, x.Intent}] = x
	}
	for _, x := range c.Dispatches {
		r.dispatches[dispatchKey(&x)] = x
	}
	for _, x := range c.Quarantines {
		if k := [2]string{x.Channel, x.Closure}; x.Cleared {
			delete(r.quarantines, k)
		} else {
			r.quarantines[k] = x
		}
	}
}

// compareRows looks whether what was stored is what the world knows: a row that was changed and not stored is
// another one after a restart.
func (x *search) compareRows(n *node) {
	is := rowsOf(n.W.State())
	differs(x.runner, "rollout", x.rows.rollouts, is.rollouts)
	differs(x.runner, "host row", x.rows.hosts, is.hosts)
	for k, d := range is.dispatches {
		// One that is over is told of again with the next that holds the slot; it was stored when it ended.
		_, stored := x.rows.dispatches[k]
		if !stored && d.State != rollout.DispatchPending && d.State != rollout.DispatchDeferred {
			delete(is.dispatches, k)
		}
	}
	differs(x.runner, "dispatch", x.rows.dispatches, is.dispatches)
	differs(x.runner, "quarantine", x.rows.quarantines, is.quarantines)
}

func differs[K comparable, V any](r *runner, what string, stored, known map[K]V) {
	for k, v := range known {
		if s, ok := stored[k]; !ok || !reflect.DeepEqual(s, v) {
			r.violate(invRows, "the %s of %v is %+v on disk and %+v in memory", what, k, s, v)
		}
	}
}
