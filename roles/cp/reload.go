package cp

import (
	"os"
	"sync"
	"time"
)

// reloaded is a value read from files and read again when one of them has
// changed. The files are looked at on every use: a key that was taken out must
// not be believed a moment longer. A file that has become unreadable leaves the last good value in
// force and gives the error to who asks.
type reloaded[T any] struct {
	paths []string
	load  func() (T, error)

	mu         sync.Mutex
	stamps     []fileStamp
	value      T
	have       bool
	generation uint64
}

type fileStamp struct {
	size     int64
	modified time.Time
	file     os.FileInfo
}

func newReloaded[T any](load func() (T, error), paths ...string) *reloaded[T] {
	return &reloaded[T]{paths: paths, load: load}
}

// get returns the value and its generation, which grows with each reload.
func (r *reloaded[T]) get() (T, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stamps := make([]fileStamp, 0, len(r.paths))
	changed := !r.have
	for i, path := range r.paths {
		var s fileStamp
		if info, err := os.Stat(path); err == nil {
			s = fileStamp{info.Size(), info.ModTime(), info}
		}
		stamps = append(stamps, s)
		if r.have && (s.size != r.stamps[i].size || !s.modified.Equal(r.stamps[i].modified) || !os.SameFile(s.file, r.stamps[i].file)) {
			changed = true
		}
	}
	if !changed {
		return r.value, r.generation, nil
	}
	value, err := r.load()
	if err != nil {
		return r.value, r.generation, err
	}
	r.value, r.stamps, r.have = value, stamps, true
	r.generation++
	return value, r.generation, nil
}
