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
	file  os.FileInfo // that is open
	read  *sql.DB
	write *sql.DB
	watch watcher
	done  chan struct{} // closed when the writer has ended

	mu     sync.Mutex
	queued *sync.Cond // queue or closed changed
	queue  []operation
	closed bool
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
// that is refused, ErrDamaged or ErrForeign, is left as it was.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.migrations == nil {
		cfg.migrations = embedded
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	// SQLite gives the files beside the database the mode of the database.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	// Copies and renames belong beside the file, not beside a link to it.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := migrate(ctx, path, cfg); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	s := &Store{path: path, done: make(chan struct{})}
	s.queued = sync.NewCond(&s.mu)
	if s.write, err = sql.Open("sqlite3", dsn(path, writing)); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite3", dsn(path, reading)); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), s.write.Close())
	}
	s.read.SetMaxOpenConns(4)
	if err := s.watch.open(ctx, s.read); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), s.read.Close(), s.write.Close())
	}
	if s.file, err = os.Stat(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open database: %w", err), s.watch.close(), s.read.Close(), s.write.Close())
	}
	go s.writer()
	return s, nil
}

// Displaced reports whether another file, or none, stands where the open one
// was: rows that somebody inserts there by hand are not seen.
func (s *Store) Displaced() bool {
	now, err := os.Stat(s.path)
	return err != nil || !os.SameFile(now, s.file)
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
	return errors.Join(s.watch.close(), s.read.Close(), s.write.Close())
}
