package explore

// table finds the number of a state by its fingerprint.
type table struct {
	keys  []uint64
	vals  []uint32
	count int
}

func (t *table) grow(size int) {
	keys, vals := t.keys, t.vals
	t.keys, t.vals = make([]uint64, size), make([]uint32, size)
	t.count = 0
	for i, k := range keys {
		if k != 0 {
			t.put(k, vals[i])
		}
	}
}

func (t *table) slot(key uint64) int {
	mask := uint64(len(t.keys) - 1)
	for i := key & mask; ; i = (i + 1) & mask {
		if t.keys[i] == key || t.keys[i] == 0 {
			return int(i)
		}
	}
}

func (t *table) find(key uint64) (uint32, bool) {
	key |= 1 // zero is an empty slot
	i := t.slot(key)
	return t.vals[i], t.keys[i] == key
}

func (t *table) put(key uint64, v uint32) {
	key |= 1
	if t.count*4 >= len(t.keys)*3 {
		t.grow(2 * len(t.keys))
	}
	i := t.slot(key)
	if t.keys[i] == 0 {
		t.count++
	}
	t.keys[i], t.vals[i] = key, v
}

// queue holds frozen states, first in, first out, in a few large pieces.
type queue struct {
	pieces [][]byte
	read   int
	held   int // bytes, at most
	most   int
}

const piece = 1 << 20

func (q *queue) push(b []byte) {
	last := len(q.pieces) - 1
	if last < 0 || len(q.pieces[last])+len(b)+3 > cap(q.pieces[last]) {
		q.pieces = append(q.pieces, make([]byte, 0, piece))
		last++
	}
	p := q.pieces[last]
	p = append(p, byte(len(b)), byte(len(b)>>8), byte(len(b)>>16))
	q.pieces[last] = append(p, b...)
	q.held += len(b) + 3
	q.most = max(q.most, q.held)
}

// pop gives the oldest, good until the next pop.
func (q *queue) pop() []byte {
	if q.read == len(q.pieces[0]) {
		q.pieces[0] = nil
		q.pieces, q.read = q.pieces[1:], 0
	}
	p := q.pieces[0][q.read:]
	n := int(p[0]) | int(p[1])<<8 | int(p[2])<<16
	q.read += n + 3
	q.held -= n + 3
	return p[3 : 3+n]
}
