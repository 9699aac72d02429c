package explore

import (
	"fmt"
	"reflect"
	"slices"
	"time"
	"unsafe"

	"nixfleet/roles/rollout"
)

// A shape says how the values of one type lie in memory, compiled once. States are frozen to bytes, thawed and
// hashed by the shapes of what they consist of, whatever the fields are called.
type shape struct {
	typ    reflect.Type
	id     uint64
	fields []field
	// inside: values of this type lie inside others and are pointed at there, as the timers of a heap are.
	inside bool
	// owned: it is one host's own row, and no other object of the world refers to it.
	owned bool
	// value: it is never changed, so that it does not matter who else points at it.
	value bool
	// state is where a row's own state lies, which decides how much its times say; nil: it is not a row.
	state *uintptr
}

type kind uint8

const (
	kByte kind = iota
	kInt
	kInt32
	kString
	kTime
	kTimePointer
	kPointer // to an object of the world
	kInside  // to something inside an object of the world
	kAtom    // to something that never changes: a release
	kSlice
	kNamed // map[string]*object
	kMap
	kLimits
	kDropped // a buffer, whose content says nothing
)

type field struct {
	kind   kind
	off    uintptr
	elem   *shape // of what is pointed at, of the elements, or of the values
	key    *shape
	typ    reflect.Type
	owner  reflect.Type // the struct it is declared in
	name   string
	silent bool // no part of the hash
	set    bool // its order says nothing
	age    age
	most   int64 // larger numbers say the same; 0: they do not
}

// age is how much of a time in the past says something.
type age uint8

const (
	ageLong   age = iota // what the longest window that looks back covers
	ageSoak              // the longest soak time
	ageSilent            // the time after which a host is offline
	ageNone              // only whether there is one
	agePast              // that it is over
)

// spent tells whether a time of a row in this state says nothing any more.
func (f *field) spent(state string) bool {
	switch f.name {
	case "Dispatch.DispatchedAt", "Dispatch.StartBy", "Dispatch.ConfirmDeadline":
		return state != rollout.DispatchPending && state != rollout.DispatchDeferred
	case "Dispatch.SlotUntil":
		return state == rollout.DispatchConfirmed
	case "HostRecord.Since":
		return state != string(rollout.Queued) && state != string(rollout.Skipped)
	case "HostRecord.HealthySince":
		return state == string(rollout.Soaked) || state == string(rollout.Converged)
	}
	return false
}

// ages are known for these. A field that is called otherwise some day keeps its whole time, which finds more states
// to be different and is slower.
var ages = map[string]age{
	"HostRecord.HealthySince": ageSoak, "proof.attested": ageSoak, "box.ConfirmedAt": ageSoak, "box.Proven": ageSoak,
	"node.Opened": ageSoak, "Rollout.OpenedAt": ageSoak, "Rollout.WaveSince": ageSilent,
	"HostRecord.FailingSince":     ageSilent,
	"Observation.LastConfirmedAt": ageSoak, "proof.healthAt": ageNone, "contact.seen": ageNone, "box.Heard": ageNone,
	"World.grace": agePast, "contact.until": ageSilent,
	"box.Until": agePast, "box.StartBy": agePast, "box.Deadline": agePast, "box.Lease": agePast, "node.Emptied": ageNone,
}

var (
	timeType   = reflect.TypeFor[time.Time]()
	limitsType = reflect.TypeFor[rollout.Limits]()
)

// dropped are buffers of the world that outlive a call and whose content means nothing then.
var dropped = []string{"spare", "steps", "bare", "phase"}

// unordered are lists of hosts that are sorted by name.
var unordered = []string{"hosts", "before"}

// silent are words and times for people, on which no decision depends.
var silent = []string{
	"Rollout.HaltReason", "Rollout.TerminalAt", "Rollout.SupersededAt", "Rollout.SupersededBy",
	"Hold.At", "Hold.By", "Hold.Reason",
	"Quarantine.Reason", "Quarantine.Since", "Dispatch.EndedAt", "Dispatch.ConfirmedAt", "World.started",
	"node.Boxes", "node.Now", "dispatched.At", "Phase.Dispatch", "Fetch.Dispatch",
}

// shapes compiles the shape of a type and of all that it reaches.
type shapes struct {
	byType map[reflect.Type]*shape
	packs  []string // packages whose objects are copied; others never change
}

func newShapes() *shapes {
	return &shapes{
		byType: map[reflect.Type]*shape{},
		packs:  []string{"nixfleet/roles/rollout", "nixfleet/roles/rollout/explore", "nixfleet/roles/protocol"},
	}
}

func (c *shapes) of(t reflect.Type) *shape {
	s := c.byType[t]
	if s == nil {
		s = &shape{typ: t, id: uint64(len(c.byType) + 1), value: t.PkgPath() == "nixfleet/roles/protocol"}
		c.byType[t] = s
		c.compile(s, t, nil, 0, "")
	}
	return s
}

func (c *shapes) ours(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && slices.Contains(c.packs, t.PkgPath()) && t != limitsType
}

// findInside marks the types that lie inside of others and are pointed at.
func (c *shapes) findInside() {
	lies := map[reflect.Type]bool{}
	for t := range c.byType {
		c.structsIn(t, lies)
	}
	for _, s := range c.byType {
		for i := range s.fields {
			if f := &s.fields[i]; f.kind == kPointer && lies[f.elem.typ] {
				f.kind, f.elem.inside = kInside, true
			}
		}
	}
	// Where it stands in the buffer that points at it says nothing.
	for _, s := range c.byType {
		for i := range s.fields {
			f := &s.fields[i]
			if o := c.byType[f.owner]; o != nil && o.inside && f.kind == kInt {
				f.silent = true
			}
		}
	}
}

func (c *shapes) structsIn(t reflect.Type, lies map[reflect.Type]bool) {
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i).Type
		if c.ours(f) {
			lies[f] = true
			c.structsIn(f, lies)
		}
	}
}

func (c *shapes) compile(s *shape, t, owner reflect.Type, off uintptr, name string) {
	add := func(f field) {
		f.off, f.typ, f.name, f.owner = off, t, name, owner
		f.silent, f.age = slices.Contains(silent, name), ages[name]
		if name == "HostRecord.Attempt" { // the pauses between attempts grow no longer
			f.most = 5
		}
		s.fields = append(s.fields, f)
	}
	short := name[max(0, lastDot(name)):]
	if slices.Contains(dropped, short) {
		add(field{kind: kDropped})
		return
	}
	switch {
	case t == timeType:
		add(field{kind: kTime})
		return
	case t == limitsType:
		add(field{kind: kLimits})
		return
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Uint8, reflect.Int8:
		add(field{kind: kByte})
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Uint:
		add(field{kind: kInt})
	case reflect.Int32, reflect.Uint32:
		add(field{kind: kInt32})
	case reflect.String:
		add(field{kind: kString})
	case reflect.Pointer:
		switch e := t.Elem(); {
		case e == timeType:
			add(field{kind: kTimePointer})
		case c.ours(e):
			add(field{kind: kPointer, elem: c.of(e)})
		default:
			add(field{kind: kAtom})
		}
	case reflect.Slice:
		add(field{kind: kSlice, elem: c.of(t.Elem()), set: slices.Contains(unordered, short)})
	case reflect.Map:
		e := t.Elem()
		if t.Key().Kind() == reflect.String && e.Kind() == reflect.Pointer && c.ours(e.Elem()) {
			add(field{kind: kNamed, elem: c.of(e.Elem())})
			return
		}
		add(field{kind: kMap, key: c.of(t.Key()), elem: c.of(e)})
	case reflect.Array:
		for i := range t.Len() {
			c.compile(s, t.Elem(), owner, off+uintptr(i)*t.Elem().Size(), name)
		}
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Type == reflect.TypeFor[rollout.HostRecord]() || f.Type == reflect.TypeFor[rollout.Dispatch]() {
				s.owned = true
				state, _ := f.Type.FieldByName("State")
				where := off + f.Offset + state.Offset
				s.state = &where
			}
			first := len(s.fields)
			c.compile(s, f.Type, t, off+f.Offset, t.Name()+"."+f.Name)
			for k := range s.fields[first:] {
				s.fields[first+k].silent = s.fields[first+k].silent || slices.Contains(silent, t.Name()+"."+f.Name)
			}
		}
	default:
		panic(fmt.Sprintf("%s is a %s, which no state may hold", name, t))
	}
}

func lastDot(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '.' {
			return i + 1
		}
	}
	return 0
}

func at[T any](p unsafe.Pointer, off uintptr) *T { return (*T)(unsafe.Add(p, off)) }

// sliceHeader is how a slice lies in memory.
type sliceHeader struct {
	data     unsafe.Pointer
	len, cap int
}

// moment tells whether a number is a time in Unix milliseconds: one of the month in which all stories happen.
func moment(n int64) bool { return n > began-30*day && n < began+30*day }

const day = 24 * 60 * 60 * 1000
