package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	_ "github.com/mattn/go-sqlite3" // the driver
	"github.com/rs/zerolog"
)

// ErrClosed means that the store was closed before the operation began.
var ErrClosed = errors.New("store is closed")

// Config says where the database is.
type Config struct {
	Path string
	Log  zerolog.Logger
	// migrations replaces the embedded ones in tests.
	migrations fs.FS
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	path  string
	log   zerolog.Logger
	guard *guard // the writer's own, once the store is open
	read  *sql.DB
	write *sql.DB
	watch watcher
	done  chan struct{} // closed when the writer has ended
	fault atomic.Pointer[error]

	mu     sync.Mutex
	queued *sync.Cond // queue or closed changed
	queue  []operation
	closed bool
	files  [3]os.FileInfo // that are open, in the order of suffixes
}

// dsn puts every pragma into the connection string: one set with Exec would
// reach a single connection of the pool.
func dsn(path string, extra url.Values) string {
	q := url.Values{"_busy_timeout": {"10000"}, "_foreign_keys": {"on"}, "_synchronous": {"FULL"},
		"_txlock": {"immediate"}}
	maps.Copy(q, extra)
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

var (
	reading = url.Values{"_journal_mode": {"WAL"}, "_query_only": {"on"}, "_txlock": {"deferred"}}
	writing = url.Values{"_journal_mode": {"WAL"}}
)

// Open opens the database at cfg.Path, makes it when there is none, and brings
// it to the newest schema, taking a copy beside it before each step. A database
// of a newer nixfleet is set aside and the copy made before it was upgraded
// takes its place, with its revocations and used tokens carried over. A file
// that is refused, which is a *Fault, is left as it was. One process at a time has
// a database open; what people do with the shell is beside that.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.migrations == nil {
		cfg.migrations = embedded
	}
	path, err := placeOf(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	g, err := takeGuard(path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	s, err := openAt(ctx, path, g, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, named(err)), g.close())
	}
	return s, nil
}

// placeOf is where the file is, and makes its directory. Copies and renames belong
// beside the file, not beside a link to it.
func placeOf(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	if linked, linkErr := exists(path); linked || linkErr != nil {
		return "", errors.Join(err, linkErr) // a link to nothing
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

func openAt(ctx context.Context, path string, g *guard, cfg Config) (_ *Store, err error) {
	switch err := g.admit(ctx, path); {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(ctx, path, cfg); err != nil {
			return nil, err
		}
		g.epochs, g.written = nil, 0
	case err != nil:
		return nil, err
	}
	aside, err := migrate(ctx, path, cfg)
	if err != nil {
		return nil, err
	}
	if aside {
		g.epochs, g.written = nil, 0
	}
	s := &Store{path: path, log: cfg.Log, guard: g, done: make(chan struct{})}
	s.queued = sync.NewCond(&s.mu)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.disconnect())
		}
	}()
	if s.write, err = sql.Open("sqlite3", dsn(path, writing)); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite3", dsn(path, reading)); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(4)
	older, err := g.older(ctx, s.write)
	if err != nil {
		return nil, err
	}
	if older {
		cfg.Log.Error().Str("file", path).Str("hint", "compare its revocations with the lines \"operator action\" of "+
			"the log and enter again what is missing; used tokens of that time are bound by the signed list only").
			Msg("database is older than what was written: a copy took its place, or its log was taken away")
	}
	if err := g.stamp(ctx, s.write); err != nil {
		return nil, err
	}
	if err := s.watch.open(ctx, s.read); err != nil {
		return nil, err
	}
	if s.files, err = openFiles(path); err != nil {
		return nil, err
	}
	go s.writer()
	return s, nil
}

// create makes a database under another name first: one that is found empty was cut off.
func create(ctx context.Context, path string, cfg Config) error {
	list, err := migrations(cfg.migrations)
	if err != nil {
		return err
	}
	next := path + ".new"
	if err := removeDatabase(next); err != nil {
		return err
	}
	// SQLite gives the files beside the database the mode of the database.
	f, err := os.OpenFile(next, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if _, err := upgrade(ctx, next, list, nil); err != nil {
		return err
	}
	return publish(next, path)
}

// disconnect closes what is open.
func (s *Store) disconnect() error {
	var problems []error
	if s.watch.conn != nil {
		problems = append(problems, s.watch.close())
	}
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			problems = append(problems, db.Close())
		}
	}
	return errors.Join(problems...)
}

// Close commits what is queued and closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.queued.Signal()
	s.mu.Unlock()
	<-s.done
	elsewhere := s.displacement() == replaced
	err := s.disconnect()
	if elsewhere {
		err = errors.Join(err, s.takeLogAway())
	}
	return errors.Join(err, s.guard.close())
}
