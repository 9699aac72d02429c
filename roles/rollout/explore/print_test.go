package explore

import (
	"encoding/binary"
	"math/bits"
	"reflect"
	"slices"
	"time"
	"unsafe"
)

// A printer takes fingerprints of states. Two states have the same one when everything that is to come is the
// same for both: times count from now and those long past are alike, equal hosts change places, words for people
// and the layout of buffers count for nothing.
type printer struct {
	root   *shape
	now    int64
	long   [agePast + 1]int64 // times before now minus this are alike, in milliseconds
	groups [][]int

	acc    uint64
	seen   pointers
	named  []namedObject
	label  [maxHosts]uint64 // what a host is called
	places [maxHosts][]object
	shapes [maxHosts][]*shape
	local  bool
}

type namedObject struct {
	p    unsafe.Pointer
	name uint64
}

const (
	seed   = 0x9e3779b97f4a7c15
	factor = 0xff51afd7ed558ccd
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^seed, b^factor)
	return hi ^ lo ^ bits.RotateLeft64(a, 31)
}

func (x *printer) feed(v uint64) { x.acc = mix(x.acc, v) }

func textHash(s string) uint64 {
	h := uint64(len(s)) * factor
	b := unsafe.Slice(unsafe.StringData(s), len(s))
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h, binary.NativeEndian.Uint64(b))
	}
	var rest uint64
	for _, c := range b {
		rest = rest<<8 | uint64(c)
	}
	return mix(h, rest)
}

// hostOf is the number of the host with this name; -1: it names none. Hosts have names of one letter.
func hostOf(s string) int {
	if len(s) != 1 || s[0] < 'a' || s[0] >= 'a'+maxHosts {
		return -1
	}
	return int(s[0] - 'a')
}

func (x *printer) word(s string) uint64 {
	if h := hostOf(s); h >= 0 {
		return x.label[h]
	}
	return textHash(s)
}

// print is the fingerprint of a state.
func (x *printer) print(n *node) uint64 {
	x.now = n.Now
	for h := range x.label {
		x.label[h] = uint64(h + 1)
		x.places[h], x.shapes[h] = x.places[h][:0], x.shapes[h][:0]
	}
	x.named = x.named[:0]
	x.seen.reset()
	x.collect(x.root, unsafe.Pointer(n))
	x.rename(n)
	x.seen.reset()
	x.acc = seed
	for i := range x.named {
		x.seen.put(x.named[i].p, x.named[i].name)
	}
	var boxes uint64
	for h := range n.Boxes[:n.Count] {
		x.acc = x.label[h]
		x.walk(boxShape, unsafe.Pointer(&n.Boxes[h]))
		boxes += x.acc
	}
	x.acc = seed
	x.walk(x.root, unsafe.Pointer(n))
	return mix(boxes, x.acc)
}

// collect finds what maps call by name.
func (x *printer) collect(s *shape, p unsafe.Pointer) {
	for i := range s.fields {
		f := &s.fields[i]
		switch f.kind {
		case kNamed:
			for k, v := range *at[map[string]unsafe.Pointer](p, f.off) {
				if h := hostOf(k); h >= 0 {
					x.places[h] = append(x.places[h], object{base: v})
					x.shapes[h] = append(x.shapes[h], f.elem)
					continue
				}
				x.named = append(x.named, namedObject{v, mix(f.elem.id, textHash(k))})
			}
		case kPointer:
			if t := *at[unsafe.Pointer](p, f.off); t != nil && !f.elem.owned {
				if _, again := x.seen.find(t); !again {
					x.seen.put(t, 0)
					x.collect(f.elem, t)
				}
			}
		}
	}
}

// rename gives equal hosts names by what they are, so that it does not matter which of them it is.
func (x *printer) rename(n *node) {
	for _, group := range x.groups {
		var marks [maxHosts]uint64
		x.local = true
		for _, h := range group {
			x.acc = seed
			for i, o := range x.places[h] {
				x.walk(x.shapes[h][i], o.base)
			}
			x.walk(boxShape, unsafe.Pointer(&n.Boxes[h]))
			marks[h] = x.acc
		}
		x.local = false
		var order [maxHosts]int
		sorted := append(order[:0], group...)
		slices.SortStableFunc(sorted, func(a, b int) int {
			switch {
			case marks[a] < marks[b]:
				return -1
			case marks[a] > marks[b]:
				return 1
			}
			return 0
		})
		for i, h := range sorted {
			x.label[h] = uint64(group[i] + 1)
		}
	}
	for h := range n.Boxes[:n.Count] {
		for i, o := range x.places[h] {
			x.named = append(x.named, namedObject{o.base, mix(x.shapes[h][i].id, x.label[h])})
		}
	}
}

// since tells times of long ago alike.
func (x *printer) since(ms int64, a age) uint64 {
	if a == ageNone {
		return 3
	}
	d := ms - x.now
	if d < -near || d > near {
		d = (d + coarse/2) / coarse * coarse // it is not due, by a moment more or less
	}
	return uint64(max(d, -x.long[a]))
}

const (
	near   = 5   // milliseconds
	coarse = 100 // milliseconds
)

func (x *printer) walk(s *shape, p unsafe.Pointer) {
	state := ""
	if s.state != nil {
		state = *at[string](p, *s.state)
	}
	for i := range s.fields {
		f := &s.fields[i]
		if f.silent || s.state != nil && f.spent(state) {
			continue
		}
		switch f.kind {
		case kByte:
			x.feed(uint64(*at[byte](p, f.off)))
		case kInt:
			switch n := *at[int64](p, f.off); {
			case moment(n):
				x.feed(x.since(n, f.age))
			case f.most > 0:
				x.feed(uint64(min(n, f.most)))
			default:
				x.feed(uint64(n))
			}
		case kInt32:
			x.feed(uint64(*at[uint32](p, f.off)))
		case kString:
			if t := *at[string](p, f.off); x.local && hostOf(t) >= 0 {
				x.feed(0)
			} else {
				x.feed(x.word(t))
			}
		case kTime:
			x.walkTime(at[time.Time](p, f.off), f.age)
		case kTimePointer:
			if t := *at[*time.Time](p, f.off); t == nil {
				x.feed(2)
			} else {
				x.walkTime(t, f.age)
			}
		case kPointer:
			x.walkPointer(f, p)
		case kInside:
			if t := *at[unsafe.Pointer](p, f.off); t != nil {
				x.walk(f.elem, t)
			}
		case kAtom:
			if t := *at[unsafe.Pointer](p, f.off); t != nil {
				x.feed(1)
			} else {
				x.feed(0)
			}
		case kSlice:
			if !x.local {
				x.walkSlice(f, p)
			}
		case kNamed:
			if !x.local {
				x.walkNamed(f, p)
			}
		case kMap:
			if !x.local {
				x.walkMap(f, p)
			}
		}
	}
}

func (x *printer) walkTime(t *time.Time, a age) {
	if t.IsZero() {
		x.feed(1)
		return
	}
	x.feed(x.since(t.UnixMilli(), a))
}

func (x *printer) walkPointer(f *field, p unsafe.Pointer) {
	t := *at[unsafe.Pointer](p, f.off)
	switch {
	case t == nil:
		x.feed(0)
	case x.local && !f.elem.owned:
		x.feed(1)
	case x.local:
		x.walk(f.elem, t)
	default:
		x.refer(f.elem, t)
	}
}

// refer names an object that has a name or was walked before, and walks others.
func (x *printer) refer(s *shape, t unsafe.Pointer) {
	if s.value {
		x.walk(s, t)
		return
	}
	if name, ok := x.seen.find(t); ok {
		x.feed(name)
		return
	}
	x.seen.put(t, mix(x.acc, s.id))
	x.walk(s, t)
}

func (x *printer) walkSlice(f *field, p unsafe.Pointer) {
	h := at[sliceHeader](p, f.off)
	size := f.elem.typ.Size()
	set := f.set || heapLike(f.elem)
	var sum uint64
	before := x.acc
	for k := range h.len {
		if set {
			x.acc = seed
		}
		x.walk(f.elem, unsafe.Add(h.data, uintptr(k)*size))
		sum += x.acc
	}
	if set {
		x.acc = mix(before, sum)
	}
	x.feed(uint64(h.len))
}

// heapLike: a list of elements that point into others is a heap, whose layout says nothing.
func heapLike(s *shape) bool {
	return slices.ContainsFunc(s.fields, func(f field) bool { return f.kind == kInside })
}

// walkNamed takes the objects of a map in the order of their names.
func (x *printer) walkNamed(f *field, p unsafe.Pointer) {
	type entry struct {
		word uint64
		p    unsafe.Pointer
	}
	var room [8]entry
	list := room[:0]
	for k, v := range *at[map[string]unsafe.Pointer](p, f.off) {
		list = append(list, entry{x.word(k), v})
	}
	for i := 1; i < len(list); i++ {
		for k := i; k > 0 && list[k].word < list[k-1].word; k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
	for _, e := range list {
		x.feed(e.word)
		x.walk(f.elem, e.p)
	}
}

func (x *printer) walkMap(f *field, p unsafe.Pointer) {
	m := reflect.NewAt(f.typ, unsafe.Add(p, f.off)).Elem()
	n := m.Len()
	x.feed(uint64(n))
	if n == 0 {
		return
	}
	var sum uint64
	before := x.acc
	for it := m.MapRange(); it.Next(); {
		k, v := reflect.New(f.typ.Key()), reflect.New(f.typ.Elem())
		k.Elem().Set(it.Key())
		v.Elem().Set(it.Value())
		x.acc = seed
		x.walk(f.key, k.UnsafePointer())
		x.walk(f.elem, v.UnsafePointer())
		sum += x.acc
	}
	x.acc = mix(before, sum)
}

func newPrinter(root *shape, s *spec) *printer {
	l := s.limits()
	var soak time.Duration
	for _, c := range s.channels {
		for _, d := range c.soaks {
			soak = max(soak, d)
		}
	}
	x := &printer{root: root, groups: s.groups()}
	for a, d := range map[age]time.Duration{
		ageLong:   max(l.Lease+l.ConfirmWindow, l.FetchLimit, s.fresh+2*time.Minute) + time.Second,
		ageSoak:   soak + s.skew + time.Second,
		ageSilent: l.OfflineAfter + time.Second,
		agePast:   time.Millisecond,
	} {
		x.long[a] = d.Milliseconds()
	}
	return x
}
