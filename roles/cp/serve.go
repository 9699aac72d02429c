package cp

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"nixfleet/roles/command"
	"nixfleet/roles/cp/page"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

const (
	headerTimeout  = 10 * time.Second
	requestTimeout = 30 * time.Second
	idleTimeout    = 10 * time.Minute
	stopTimeout    = 10 * time.Second
	pruneInterval  = time.Hour
)

// server is a running control plane: its parts, each of which knows those that it
// asks.
type server struct {
	cfg      *Config
	log      zerolog.Logger
	store    store.Database
	files    *files
	world    *world
	ticker   *ticker
	release  *inForce
	door     *door
	handlers *handlers
	api      *api
	page     *pageDoor
	notices  *notices // nil where nobody is told
	stopping chan struct{}
}

// Run serves until ctx ends, then answers what is held and returns nil.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	s, err := newServer(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.store.Close()
	return s.run(ctx)
}

func newServer(ctx context.Context, cfg Config) (*server, error) {
	from, err := cfg.source()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o750); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	reread := newFiles(&cfg)
	if err := reread.read(); err != nil {
		return nil, err
	}
	db, err := openStore(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	s, err := assemble(&cfg, from, reread, db)
	if err == nil {
		err = s.world.load(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func openStore(ctx context.Context, cfg *Config) (store.Database, error) {
	if cfg.DBPath == "" {
		cfg.Log.Warn().Msg("no database: nothing is dispatched and no host can enrol")
		return store.None{}, nil
	}
	return store.Open(ctx, store.Config{Path: cfg.DBPath, Log: cfg.Log})
}

// assemble makes the parts of a control plane and tells them of each other.
func assemble(cfg *Config, from source.Source, reread *files, db store.Database) (*server, error) {
	snapshot, held, log := &current{}, newWaiters(cfg.MaxHeld), cfg.Log
	counted := newMetrics(cfg)
	w := &world{
		limits: cfg.limits(), log: log, store: db, snapshot: snapshot, waiters: held, feed: newFeed(), metrics: counted,
		took: newLatencies(counted.registry),
		kick: make(chan struct{}, 1),
	}
	counted.watch(held, w, reread)
	release := &inForce{
		cfg: cfg, log: log, source: from, files: reread, snapshot: snapshot, world: w, waiters: held, metrics: counted,
		history: newHistory(), poked: make(chan struct{}, 1),
	}
	s := &server{
		cfg: cfg, log: log, store: db, files: reread, world: w, release: release, stopping: make(chan struct{}),
		ticker: newTicker(cfg, db, w, held),
		door:   newDoor(cfg, reread, snapshot, db, counted),
	}
	s.door.channelOfRollout = func(id string) (string, bool) {
		v, ok := w.view(id)
		return v.Channel, ok
	}
	seen := newLastSeen()
	counted.watchChannels(w, seen, release)
	counted.watchRelease(w, seen, release)
	told, err := newNotices(cfg, counted)
	if err != nil {
		return nil, err
	}
	s.notices = told
	s.notices.know(w, seen, snapshot, release, s.door)
	s.handlers = &handlers{
		readiness: &readiness{store: db, snapshot: snapshot, ticker: s.ticker, release: release},
		issuer:    newIssuer(s.door),
		checkins: &checkins{
			cfg: cfg, log: log, store: db, world: w, snapshot: snapshot, waiters: held, seen: seen, door: s.door,
			metrics: counted,
			started: time.Now(), stopping: s.stopping, dispatches: db.Err() == nil,
		},
		reports:   &reports{log: log, world: w, snapshot: snapshot, repeated: newRepeated(), metrics: counted},
		documents: newDocuments(cfg, snapshot, release.history),
		views: &views{
			cfg: cfg, log: log, store: db, world: w, snapshot: snapshot, seen: seen, ticker: s.ticker, door: s.door,
			feed: w.feed, stopping: s.stopping,
		},
		acts:    &acts{cfg: cfg, log: log, store: db, world: w, waiters: held, release: release},
		webhook: &webhook{cfg: cfg, log: log, door: s.door, release: release, limit: rate.NewLimiter(1, 5)},
	}
	s.handlers.plans = &plans{world: w, release: release, views: s.handlers.views}
	version, _ := cfg.version()
	routes, err := described(s.handlers.table(counted.registry), version)
	if err != nil {
		return nil, fmt.Errorf("describe the API: %w", err)
	}
	s.api = newAPI(s.door, routes)
	s.page = &pageDoor{door: s.door, page: page.New(newInProcess(log, s.door, s.handlers.views, routes))}
	return s, nil
}

// limits are those of the decisions.
func (c *Config) limits() rollout.Limits {
	l := rollout.DefaultLimits()
	l.ConfirmWindow = c.ConfirmDeadline
	l.OfflineAfter = max(3*c.CheckinInterval, 3*time.Second)
	return l
}

// version splits "0.1.0 (commit abc)".
func (c *Config) version() (version, commit string) {
	version, rest, _ := strings.Cut(c.Version, " ")
	return version, strings.TrimSuffix(strings.TrimPrefix(rest, "(commit "), ")")
}

func (s *server) run(ctx context.Context) error {
	revision, polled := s.release.prime(ctx)
	inner := s.cfg.Listener
	if inner == nil {
		var err error
		if inner, err = listenTCP(ctx, s.cfg.Listen); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	forPage, err := s.listenForPage(ctx)
	if err != nil {
		return errors.Join(err, inner.Close())
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){
		func(ctx context.Context) { s.release.pollLoop(ctx, revision, polled) },
		s.ticker.loop, s.ticker.pruneLoop, s.reloadLoop, s.notices.loop,
		func(ctx context.Context) { command.Watchdog(ctx, s.ticker.alive) },
	} {
		loops.Go(func() { loop(background) })
	}
	defer loops.Wait()
	defer cancel()
	return s.listen(ctx, inner, forPage)
}

// listenForPage is where the page is served; nil for nowhere.
func (s *server) listenForPage(ctx context.Context) (net.Listener, error) {
	if s.cfg.PageListener != nil || s.cfg.PageListen == "" {
		return s.cfg.PageListener, nil
	}
	inner, err := listenTCP(ctx, s.cfg.PageListen)
	if err != nil {
		return nil, fmt.Errorf("listen for the page: %w", err)
	}
	return inner, nil
}

// listen serves connections until ctx ends; forPage is nil where no page is served.
func (s *server) listen(ctx context.Context, inner, forPage net.Listener) error {
	failed := make(chan error, 2)
	serving := []*http.Server{s.serveOn(inner, s.api, failed)}
	if forPage != nil {
		serving = append(serving, s.serveOn(forPage, s.page, failed))
		s.log.Info().Str("address", forPage.Addr().String()).Msg("page is served")
	}
	s.log.Info().Str("address", inner.Addr().String()).Str("source", s.release.source.String()).
		Bool("ready", s.release.snapshot.Load() != nil).Msg("control plane listens")
	command.Ready()
	var broken error
	select {
	case err := <-failed:
		broken = fmt.Errorf("serve: %w", err)
		failed <- err // it is counted below
	case <-ctx.Done():
	}
	command.Stopping()
	s.log.Info().Msg("control plane stops")
	close(s.stopping)
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer done()
	for _, web := range serving {
		if err := web.Shutdown(stop); err != nil {
			web.Close()
		}
	}
	for range serving {
		<-failed
	}
	return broken
}

// serveOn serves a handler on a listener until it is shut down, and then says so on ended.
func (s *server) serveOn(inner net.Listener, handler http.Handler, ended chan<- error) *http.Server {
	listener := newLimitedListener(inner, s.files.tlsConfig(), s.cfg.MaxHandshakes, s.cfg.MaxAnonymous, s.log,
		s.door.metrics.handshakes.Inc)
	web := &http.Server{
		Handler: handler, ConnContext: connectionContext,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * is a path like others
		// Handshakes that fail are the peers' noise, not ours: the listener counts them.
		ErrorLog: stdlog.New(io.Discard, "", 0),
	}
	go func() { ended <- web.Serve(listener) }()
	return web
}

// reloadLoop looks at everything at once when it is told to. Files that changed
// are read without it, too.
func (s *server) reloadLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Reload:
		}
		err := s.files.read()
		s.release.lookNow()
		s.log.Info().AnErr("error", err).Msg("reload: files read, source asked")
	}
}
