package explore

import (
	"reflect"
	"unsafe"
)

// pool keeps objects of one type for the next thaw.
type pool struct {
	typ  reflect.Type
	objs []unsafe.Pointer
	used int
}

func (p *pool) take() unsafe.Pointer {
	if p.used == len(p.objs) {
		p.objs = append(p.objs, reflect.New(p.typ).UnsafePointer())
	}
	p.used++
	return p.objs[p.used-1]
}

// arena keeps the elements of slices.
type arena struct {
	typ    reflect.Type
	chunks []unsafe.Pointer
	chunk  int
	used   int
}

const chunkSize = 64

func (a *arena) reset() { a.chunk, a.used = 0, 0 }

func (a *arena) take(n int) unsafe.Pointer {
	if n > chunkSize {
		return reflect.MakeSlice(reflect.SliceOf(a.typ), n, n).UnsafePointer()
	}
	if a.used+n > chunkSize {
		a.chunk, a.used = a.chunk+1, 0
	}
	if a.chunk == len(a.chunks) {
		a.chunks = append(a.chunks, reflect.MakeSlice(reflect.SliceOf(a.typ), chunkSize, chunkSize).UnsafePointer())
	}
	p := unsafe.Add(a.chunks[a.chunk], uintptr(min(a.used, chunkSize-1))*a.typ.Size())
	a.used += n
	return p
}

func (z *freezer) arena(t reflect.Type) *arena {
	a := z.arenas[t]
	if a == nil {
		a = &arena{typ: t}
		z.arenas[t] = a
	}
	return a
}

// mapPool keeps maps from names to objects. All of these lie in memory like a map to unsafe pointers.
type mapPool struct {
	maps []map[string]unsafe.Pointer
	used int
}

func (m *mapPool) named() map[string]unsafe.Pointer {
	if m.used == len(m.maps) {
		m.maps = append(m.maps, map[string]unsafe.Pointer{})
	}
	m.used++
	x := m.maps[m.used-1]
	clear(x)
	return x
}

func (z *freezer) mapOf(t reflect.Type) *mapPool {
	m := z.maps[t]
	if m == nil {
		m = &mapPool{}
		z.maps[t] = m
	}
	return m
}

// pointers is a small table by address.
type pointers struct {
	keys   [256]unsafe.Pointer
	values [256]uint64
	turns  [256]uint32
	turn   uint32
}

func (t *pointers) reset() { t.turn++ }

func (t *pointers) slot(p unsafe.Pointer) (int, bool) {
	for i := int(uintptr(p) * 0x9e3779b97f4a7c15 >> 56); ; i = (i + 1) & 255 {
		if t.turns[i] != t.turn {
			return i, false
		}
		if t.keys[i] == p {
			return i, true
		}
	}
}

func (t *pointers) put(p unsafe.Pointer, v uint64) {
	i, _ := t.slot(p)
	t.keys[i], t.values[i], t.turns[i] = p, v, t.turn
}

func (t *pointers) find(p unsafe.Pointer) (uint64, bool) {
	i, ok := t.slot(p)
	return t.values[i], ok
}
