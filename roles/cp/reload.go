package cp

import (
	"os"
	"sync"
	"time"
)

// reloaded is a value read from files and read again when one of them has
// changed. The files are looked at on every use: a key that was taken out must
// not be believed a moment longer. A file that has become unreadable leaves the
// last good value in force, gives the error to who asks, and is complained of
// once.
type reloaded[T any] struct {
	paths []string
	load  func() (T, error)
	tell  func(error)

	mu         sync.Mutex
	stamps     []fileStamp
	value      T
	have       bool
	told       string // the last complaint, until a load succeeds
	generation uint64
}

type fileStamp struct {
	size     int64
	modified time.Time
	file     os.FileInfo
}

func newReloaded[T any](tell func(error), load func() (T, error), paths ...string) *reloaded[T] {
	return &reloaded[T]{paths: paths, load: load, tell: tell}
}

// same: the file is as it was; one that was not there still is not.
func (s fileStamp) same(before fileStamp) bool {
	if s.file == nil || before.file == nil {
		return s.file == before.file
	}
	return s.size == before.size && s.modified.Equal(before.modified) && os.SameFile(s.file, before.file)
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
		changed = changed || !s.same(r.stamps[i])
	}
	if !changed {
		return r.value, r.generation, nil
	}
	value, err := r.load()
	if err != nil {
		if r.have && err.Error() != r.told {
			r.told = err.Error()
			r.tell(err)
		}
		return r.value, r.generation, err
	}
	r.told = ""
	r.value, r.stamps, r.have = value, stamps, true
	r.generation++
	return value, r.generation, nil
}
