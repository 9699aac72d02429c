package cp

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/cp/source"
	"nixfleet/store"
)

const (
	headerTimeout  = 10 * time.Second
	requestTimeout = 30 * time.Second
	idleTimeout    = 10 * time.Minute
	stopTimeout    = 10 * time.Second
	pruneInterval  = time.Hour
)

// server is a running control plane.
type server struct {
	cfg    Config
	log    zerolog.Logger
	source source.Source
	store  *store.Store // nil without a database
	rules  pki.IdentityRules

	serverCert *reloaded[*tls.Certificate]
	clientCAs  *reloaded[clientCAs]
	trust      *reloaded[*pki.Trust]
	ca         *reloaded[*pki.CA]

	snapshot atomic.Pointer[snapshot]
	floor    *fleet.Release // nothing older is accepted; the poller's own
	unkept   *fleet.Release // accepted and not on disk yet; the poller's own
	trusted  uint64         // generation of the trust file that it was verified by; the poller's own
	history  *history
	world    world
	waiters  *waiters
	feed     *feed
	seen     *lastSeen
	repeated *repeated
	metrics  *metrics
	lastTick atomic.Int64         // Unix milliseconds
	revoked  map[string]time.Time // by local rows, at the last tick; the tick loop's own

	displaced bool // the database's file is gone, and that was said; the tick loop's own

	kick     chan struct{} // the tick has something to do
	poked    chan struct{} // look at the source
	stopping chan struct{}
	started  time.Time

	fetcher, cache *http.Client
	fetches        singleflight.Group // of manifests, by id
	hostRate       *buckets           // requests by the certificate's key
	sourceRate     *buckets           // requests that come with a token only, by address
	tokenLimit     *rate.Limiter      // the same, all together
	reportRate     *buckets           // bootstrap reports by host
	webhookLimit   *rate.Limiter
	limitedLog     rate.Sometimes
	auditMu        sync.Mutex
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
	if s.store != nil {
		defer s.store.Close()
	}
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
	stays := func(what string) func(error) {
		return func(err error) { cfg.Log.Error().Err(err).Msg(what + " not reloaded, the last good one stays") }
	}
	s := &server{
		cfg: cfg, log: cfg.Log, source: from,
		rules:      pki.IdentityRules{Suffix: cfg.AgentSuffix, SingleCA: cfg.SingleCA, LegacyHosts: cfg.LegacyHosts},
		serverCert: newReloaded(stays("server certificate"), loadServerCertificate(cfg.TLSCert, cfg.TLSKey), cfg.TLSCert, cfg.TLSKey),
		clientCAs:  newReloaded(stays("client CA"), loadClientCAs(cfg.ClientCA), cfg.ClientCA),
		ca:         newReloaded(stays("issuing CA"), cfg.loadCA, cfg.FleetCACert, cfg.FleetCAKey, cfg.TPMPubkey),
		history:    newHistory(),
		waiters:    newWaiters(cfg.MaxHeld), feed: newFeed(), seen: newLastSeen(), repeated: newRepeated(),
		kick: make(chan struct{}, 1), poked: make(chan struct{}, 1), stopping: make(chan struct{}),
		started: time.Now(), fetcher: &http.Client{Timeout: source.FetchTimeout}, cache: &http.Client{Timeout: cacheTimeout},
		hostRate:   newBuckets(rate.Limit(cfg.MaxRate), hostBurst*cfg.MaxRate),
		sourceRate: newBuckets(rate.Limit(cfg.MaxSourceRate), sourceBurst*cfg.MaxSourceRate),
		tokenLimit: rate.NewLimiter(200, 400), reportRate: newBuckets(rate.Every(10*time.Second), 5), webhookLimit: rate.NewLimiter(1, 5),
		limitedLog: rate.Sometimes{Interval: 10 * time.Second},
	}
	s.trust = newReloaded(stays("trust file"), func() (*pki.Trust, error) {
		t, warnings, err := pki.LoadTrust(cfg.TrustFile)
		for _, w := range warnings {
			s.log.Warn().Str("file", cfg.TrustFile).Msg("trust file: " + w)
		}
		return t, err
	}, cfg.TrustFile)
	version, commit := s.version()
	s.metrics = newMetrics(s, version, commit)
	if err := s.readFiles(); err != nil {
		return nil, err
	}
	if cfg.DBPath == "" {
		s.log.Warn().Msg("no database: nothing is dispatched and nobody can enrol")
	} else if s.store, err = store.Open(ctx, store.Config{Path: cfg.DBPath, Log: cfg.Log}); err != nil {
		return nil, err
	}
	if err := s.loadWorld(ctx); err != nil {
		if s.store != nil {
			err = errors.Join(err, s.store.Close())
		}
		return nil, err
	}
	return s, nil
}

// version splits "0.1.0 (commit abc)".
func (s *server) version() (version, commit string) {
	version, rest, _ := strings.Cut(s.cfg.Version, " ")
	return version, strings.TrimSuffix(strings.TrimPrefix(rest, "(commit "), ")")
}

func (s *server) run(ctx context.Context) error {
	revision, polled := s.prime(ctx)
	inner := s.cfg.Listener
	if inner == nil {
		var err error
		if inner, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	listener := newLimitedListener(inner, s.tlsConfig(), s.cfg.MaxHandshakes, s.cfg.MaxAnonymous, s.log)
	web := &http.Server{
		Handler: s.handler(), ConnContext: connectionContext,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ConnState:                    listener.known.leave,
		DisableGeneralOptionsHandler: true, // OPTIONS * is a path like others
		// Handshakes that fail are the peers' noise, not ours.
		ErrorLog: stdlog.New(io.Discard, "", 0),
	}

	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){
		func(ctx context.Context) { s.pollLoop(ctx, revision, polled) }, s.tickLoop, s.pruneLoop,
		s.reloadLoop, func(ctx context.Context) { command.Watchdog(ctx, s.alive) },
	} {
		loops.Go(func() { loop(background) })
	}
	defer loops.Wait()
	defer cancel()

	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	s.log.Info().Str("address", inner.Addr().String()).Str("source", s.source.String()).Bool("ready", s.snapshot.Load() != nil).Msg("control plane listens")
	command.Ready()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	command.Stopping()
	s.log.Info().Msg("control plane stops")
	close(s.stopping)
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer done()
	if err := web.Shutdown(stop); err != nil {
		web.Close()
	}
	<-failed
	return nil
}

// alive says that the ticks go on, to systemd's watchdog.
func (s *server) alive() bool { return time.Since(time.UnixMilli(s.lastTick.Load())) < 2*maxTickWait }

// reloadLoop looks at everything at once when it is told to. Files that changed
// are read without it, too.
func (s *server) reloadLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Reload:
		}
		err := s.readFiles()
		s.lookNow()
		s.log.Info().AnErr("error", err).Msg("reload: files read, source asked")
	}
}

// readFiles reads certificates, CAs and trust file if they have changed.
func (s *server) readFiles() error {
	_, _, certErr := s.serverCert.get()
	_, _, clientErr := s.clientCAs.get()
	_, _, trustErr := s.trust.get()
	_, _, issuingErr := s.ca.get()
	return cmp.Or(certErr, clientErr, trustErr, issuingErr)
}

func (s *server) pruneLoop(ctx context.Context) {
	if s.store == nil {
		return
	}
	ticker := time.NewTicker(pruneInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := s.store.Prune(ctx, now); err != nil {
				s.log.Error().Err(err).Msg("database not pruned")
			}
		}
	}
}
