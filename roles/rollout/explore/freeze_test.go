package explore

import (
	"fmt"
	"reflect"
	"time"
	"unsafe"

	"nixfleet/roles/rollout"
)

// A freezer turns a state into bytes and back. Nothing of it may be shared between goroutines; a thawed state is
// good until the next thaw, whose objects take its place.
type freezer struct {
	root   *shape
	limits rollout.Limits
	now    int64

	strings map[string]uint64
	texts   []string
	atoms   map[unsafe.Pointer]uint64
	atomOf  []unsafe.Pointer

	out    []byte
	seen   pointers
	insets []inset // pointers into objects, resolved at the end
	objs   []object

	in      []byte
	pos     int
	pools   map[*shape]*pool
	arenas  map[reflect.Type]*arena
	maps    map[reflect.Type]*mapPool
	thawed  []unsafe.Pointer
	pending []unsafe.Pointer
}

type object struct {
	base unsafe.Pointer
	size uintptr
}

type inset struct{ target unsafe.Pointer }

func newFreezer(limits rollout.Limits) *freezer {
	c := newShapes()
	root := c.of(reflect.TypeFor[node]())
	c.findInside()
	return &freezer{
		root: root, limits: limits, strings: map[string]uint64{}, atoms: map[unsafe.Pointer]uint64{},
		pools: map[*shape]*pool{}, arenas: map[reflect.Type]*arena{}, maps: map[reflect.Type]*mapPool{},
	}
}

func (z *freezer) text(s string) uint64 {
	id, ok := z.strings[s]
	if !ok {
		id = uint64(len(z.texts))
		z.strings[s] = id
		z.texts = append(z.texts, s)
	}
	return id
}

func (z *freezer) atom(p unsafe.Pointer) uint64 {
	id, ok := z.atoms[p]
	if !ok {
		id = uint64(len(z.atomOf) + 1)
		z.atoms[p] = id
		z.atomOf = append(z.atomOf, p)
	}
	return id
}

func (z *freezer) put(n uint64) {
	for n >= 0x80 {
		z.out = append(z.out, byte(n)|0x80)
		n >>= 7
	}
	z.out = append(z.out, byte(n))
}

func (z *freezer) putSigned(n int64) { z.put(uint64(n)<<1 ^ uint64(n>>63)) }

func (z *freezer) get() uint64 {
	b := z.in[z.pos]
	z.pos++
	if b < 0x80 {
		return uint64(b)
	}
	n := uint64(b & 0x7f)
	for shift := 7; ; shift += 7 {
		b := z.in[z.pos]
		z.pos++
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
}

func (z *freezer) getSigned() int64 {
	n := z.get()
	return int64(n>>1) ^ -int64(n&1)
}

// freeze appends the state to buf. Times are kept relative to now.
func (z *freezer) freeze(buf []byte, n *node) []byte {
	z.out, z.now = buf, n.Now
	z.seen.reset()
	z.objs, z.insets = z.objs[:0], z.insets[:0]
	z.put(uint64(n.Now - began))
	z.writeObject(z.root, unsafe.Pointer(n))
	for _, x := range z.insets {
		found := false
		for i, o := range z.objs {
			if d := uintptr(x.target) - uintptr(o.base); uintptr(x.target) >= uintptr(o.base) && d < o.size {
				z.put(uint64(i))
				z.put(uint64(d))
				found = true
				break
			}
		}
		if !found {
			panic("a pointer leads into no object of the state")
		}
	}
	buf, z.out = z.out, nil
	return buf
}

func (z *freezer) writeObject(s *shape, p unsafe.Pointer) {
	z.seen.put(p, uint64(len(z.objs)))
	z.objs = append(z.objs, object{p, s.typ.Size()})
	z.write(s, p)
}

func (z *freezer) write(s *shape, p unsafe.Pointer) {
	for i := range s.fields {
		f := &s.fields[i]
		switch f.kind {
		case kByte:
			z.out = append(z.out, *at[byte](p, f.off))
		case kInt:
			z.writeInt(*at[int64](p, f.off))
		case kInt32:
			z.put(uint64(*at[uint32](p, f.off)))
		case kString:
			z.put(z.text(*at[string](p, f.off)))
		case kTime:
			z.writeTime(at[time.Time](p, f.off))
		case kTimePointer:
			if t := *at[*time.Time](p, f.off); t == nil {
				z.put(1)
			} else {
				z.writeTime(t)
			}
		case kPointer:
			z.writePointer(f.elem, *at[unsafe.Pointer](p, f.off))
		case kInside:
			t := *at[unsafe.Pointer](p, f.off)
			if t == nil {
				z.put(0)
				continue
			}
			z.put(1)
			z.insets = append(z.insets, inset{t})
		case kAtom:
			if t := *at[unsafe.Pointer](p, f.off); t == nil {
				z.put(0)
			} else {
				z.put(z.atom(t))
			}
		case kSlice:
			h := at[sliceHeader](p, f.off)
			if h.data == nil {
				z.put(0)
				continue
			}
			z.put(uint64(h.len) + 1)
			for k := range h.len {
				z.write(f.elem, unsafe.Add(h.data, uintptr(k)*f.elem.typ.Size()))
			}
		case kNamed:
			m := *at[map[string]unsafe.Pointer](p, f.off)
			z.put(uint64(len(m)))
			for k, v := range m {
				z.put(z.text(k))
				z.writePointer(f.elem, v)
			}
		case kMap:
			z.writeMap(f, p)
		case kLimits:
			if *at[rollout.Limits](p, f.off) != z.limits {
				panic("limits that are not the fleet's")
			}
		}
	}
}

func (z *freezer) writeInt(n int64) {
	if moment(n) {
		z.put(1)
		z.putSigned(n - z.now)
		return
	}
	z.put((uint64(n)<<1 ^ uint64(n>>63)) << 1)
}

func (z *freezer) writeTime(t *time.Time) {
	if t.IsZero() {
		z.put(0)
		return
	}
	ms := t.UnixMilli() - z.now
	z.put((uint64(ms)<<1 ^ uint64(ms>>63)) + 2)
}

func (z *freezer) writePointer(s *shape, t unsafe.Pointer) {
	if t == nil {
		z.put(0)
		return
	}
	if id, ok := z.seen.find(t); ok {
		z.put(id + 2)
		return
	}
	z.put(1)
	z.writeObject(s, t)
}

// writeMap is for maps that are mostly empty.
func (z *freezer) writeMap(f *field, p unsafe.Pointer) {
	m := reflect.NewAt(f.typ, unsafe.Add(p, f.off)).Elem()
	z.put(uint64(m.Len()))
	if m.Len() == 0 {
		return
	}
	for it := m.MapRange(); it.Next(); {
		k, v := reflect.New(f.typ.Key()), reflect.New(f.typ.Elem())
		k.Elem().Set(it.Key())
		v.Elem().Set(it.Value())
		z.write(f.key, k.UnsafePointer())
		z.write(f.elem, v.UnsafePointer())
	}
}

// thaw makes the state again.
func (z *freezer) thaw(buf []byte) *node {
	z.in, z.pos = buf, 0
	for _, p := range z.pools {
		p.used = 0
	}
	for _, a := range z.arenas {
		a.reset()
	}
	for _, m := range z.maps {
		m.used = 0
	}
	z.thawed, z.pending = z.thawed[:0], z.pending[:0]
	z.now = int64(z.get()) + began
	n := (*node)(z.readObject(z.root))
	for _, place := range z.pending {
		i, off := z.get(), z.get()
		*(*unsafe.Pointer)(place) = unsafe.Add(z.thawed[i], off)
	}
	if z.pos != len(buf) {
		panic(fmt.Sprintf("a state of %d bytes ended after %d", len(buf), z.pos))
	}
	return n
}

func (z *freezer) readObject(s *shape) unsafe.Pointer {
	pl := z.pools[s]
	if pl == nil {
		pl = &pool{typ: s.typ}
		z.pools[s] = pl
	}
	p := pl.take()
	z.thawed = append(z.thawed, p)
	z.read(s, p)
	return p
}

func (z *freezer) read(s *shape, p unsafe.Pointer) {
	for i := range s.fields {
		f := &s.fields[i]
		switch f.kind {
		case kByte:
			*at[byte](p, f.off) = z.in[z.pos]
			z.pos++
		case kInt:
			*at[int64](p, f.off) = z.readInt()
		case kInt32:
			*at[uint32](p, f.off) = uint32(z.get())
		case kString:
			*at[string](p, f.off) = z.texts[z.get()]
		case kTime:
			*at[time.Time](p, f.off) = z.readTime(z.get())
		case kTimePointer:
			*at[*time.Time](p, f.off) = nil
			if n := z.get(); n != 1 {
				t := (*time.Time)(z.arena(timeType).take(1))
				*t = z.readTime(n)
				*at[*time.Time](p, f.off) = t
			}
		case kPointer:
			*at[unsafe.Pointer](p, f.off) = z.readPointer(f.elem)
		case kInside:
			*at[unsafe.Pointer](p, f.off) = nil
			if z.get() == 1 {
				z.pending = append(z.pending, unsafe.Add(p, f.off))
			}
		case kAtom:
			*at[unsafe.Pointer](p, f.off) = nil
			if id := z.get(); id > 0 {
				*at[unsafe.Pointer](p, f.off) = z.atomOf[id-1]
			}
		case kSlice:
			z.readSlice(f, p)
		case kNamed:
			n := z.get()
			m := z.mapOf(f.typ).named()
			for range n {
				k := z.texts[z.get()]
				m[k] = z.readPointer(f.elem)
			}
			*at[map[string]unsafe.Pointer](p, f.off) = m
		case kMap:
			z.readMap(f, p)
		case kLimits:
			*at[rollout.Limits](p, f.off) = z.limits
		case kDropped:
			reflect.NewAt(f.typ, unsafe.Add(p, f.off)).Elem().SetZero()
		}
	}
}

func (z *freezer) readInt() int64 {
	n := z.get()
	if n == 1 {
		return z.getSigned() + z.now
	}
	n >>= 1
	return int64(n>>1) ^ -int64(n&1)
}

func (z *freezer) readTime(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	n -= 2
	return time.UnixMilli((int64(n>>1) ^ -int64(n&1)) + z.now).UTC()
}

func (z *freezer) readPointer(s *shape) unsafe.Pointer {
	switch id := z.get(); id {
	case 0:
		return nil
	case 1:
		return z.readObject(s)
	default:
		return z.thawed[id-2]
	}
}

func (z *freezer) readSlice(f *field, p unsafe.Pointer) {
	n := int(z.get())
	h := at[sliceHeader](p, f.off)
	if n == 0 {
		h.data, h.len, h.cap = nil, 0, 0
		return
	}
	n--
	data := z.arena(f.elem.typ).take(n)
	h.data, h.len, h.cap = data, n, n
	for k := range n {
		z.read(f.elem, unsafe.Add(data, uintptr(k)*f.elem.typ.Size()))
	}
}

func (z *freezer) readMap(f *field, p unsafe.Pointer) {
	n := z.get()
	m := reflect.MakeMap(f.typ)
	for range n {
		k, v := reflect.New(f.typ.Key()), reflect.New(f.typ.Elem())
		z.read(f.key, k.UnsafePointer())
		z.read(f.elem, v.UnsafePointer())
		m.SetMapIndex(k.Elem(), v.Elem())
	}
	reflect.NewAt(f.typ, unsafe.Add(p, f.off)).Elem().Set(m)
}
