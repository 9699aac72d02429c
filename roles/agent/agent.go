package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// agent is a running agent: parts that each do one thing, and the loops that they run in.
type agent struct {
	log       zerolog.Logger
	dir       journal.Directory
	outside   journal.Directory // where the second copy of the mark lies
	client    *client.Client    // with our certificate
	clock     *clock
	work      *work
	undoer    *undo.Undoer
	prober    *prober
	reporter  *reporter
	enroller  *enroller
	activator *activator
	lookahead *lookahead
	rebooter  *rebooter
	notes     *notes
	loop      *loop
}

// Deadline is what the timer of an activation, a unit of the given name, runs on the host of
// the configuration, in a process of its own: what is not proven is undone. It returns when
// that is done, and with an error when ctx ends or an hour was not enough.
func Deadline(ctx context.Context, cfg Config, unit string) error {
	return undoerOf(cfg).Insist(ctx, unit)
}

// Guard is what runs at boot before the agent: it acts on an activation that a power cut
// interrupted.
func Guard(ctx context.Context, cfg Config) error { return undoerOf(cfg).Guard(ctx) }

func undoerOf(cfg Config) *undo.Undoer {
	return &undo.Undoer{Host: cfg.Host, Dir: journal.Directory(cfg.StateDir), Log: cfg.Log, Flags: cfg.hostArguments()}
}

// Bounds of the agent, whatever it is told.
const (
	maxContact = 15 * time.Minute
	maxReason  = 500 // bytes of a text of the control plane
)

// Run keeps the host at its declared state until ctx ends. An activation that is
// under way then is resumed by the next agent from its journal.
func Run(ctx context.Context, cfg Config) error {
	a, err := newAgent(cfg)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// newAgent makes an agent, which has not contacted the control plane yet.
func newAgent(cfg Config) (*agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := cfg.volatileState(); err != nil {
		return nil, err
	}
	if err := cfg.makeHost(); err != nil {
		return nil, err
	}
	reboots, err := parseRebootPolicy(cfg.RebootPolicy)
	if err == nil {
		err = reboots.check(context.Background(), cfg.Host)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	checks, err := loadProbes(cfg.HealthChecks)
	if err != nil {
		return nil, err
	}
	a := &agent{log: cfg.Log, clock: &clock{own: cfg.Clock, started: time.Now()}, work: newWork(), undoer: undoerOf(cfg)}
	if a.dir, err = journal.Open(cfg.StateDir); err != nil {
		return nil, err
	}
	if a.outside, err = journal.Open(verify.OutsideDirectory(cfg.StateDir, cfg.ClientCert)); err != nil {
		return nil, err
	}
	a.prober = newProber(checks, cfg.Host, a.work.tellChange)
	if err := a.assemble(&cfg, reboots); err != nil {
		return nil, err
	}
	return a, nil
}

// assemble makes the parts that speak with the control plane, and those that these need.
func (a *agent) assemble(cfg *Config, reboots rebootPolicy) error {
	manifests, err := journal.Open(a.dir.Path("rollouts"))
	if err != nil {
		return err
	}
	trust := verify.NewTrustFile(cfg.TrustFile, a.log)
	if _, err := trust.Read(); err != nil {
		return err
	}
	id, err := a.identity(cfg, trust)
	if err != nil {
		return err
	}
	if a.client, err = newClient(cfg, a.clock, id.certificate); err != nil {
		return err
	}
	anonymous, err := newClient(cfg, a.clock, nil)
	if err != nil {
		return err
	}
	outbox, err := openOutbox(a.dir)
	if err != nil {
		return err
	}
	file := openStatus(a.dir, cfg.MachineID)
	file.note(func(s *status) { s.MarkCopy = string(a.outside) })
	marks := verify.Marks{State: a.dir, Outside: a.outside}
	a.reporter = &reporter{
		cfg: cfg, log: a.log, clock: a.clock, identity: id, client: a.client, outbox: outbox,
		given: &dispatches{log: a.log, dir: a.dir}, delivering: semaphore.NewWeighted(1),
	}
	memory := &memory{log: a.log, dir: a.dir, undoer: a.undoer, clock: a.clock, work: a.work, reporter: a.reporter}
	verifier := verify.New(verify.Config{
		Hostname: cfg.MachineID, Trust: trust.Read, Marks: marks, Now: a.clock.now, AllowV1: cfg.AllowV1,
		Past:           func() time.Time { return a.clock.past(id.knownStart(), memory.confirmedAt()) },
		MaxManifestAge: cfg.MaxManifestAge, Compliance: cfg.ComplianceMode, Manifests: manifests,
	})
	contact := &contact{
		cfg: cfg, host: cfg.Host, dir: a.dir, undoer: a.undoer, clock: a.clock, status: file, work: a.work, memory: memory,
		prober: a.prober, identity: id, client: a.client, reboots: reboots,
		boots: &bootWatch{host: cfg.Host, log: a.log},
	}
	a.enroller = &enroller{
		cfg: cfg, log: a.log, dir: a.dir, clock: a.clock, status: file, reporter: a.reporter, contact: contact, identity: id,
		client: a.client, anonymous: anonymous,
	}
	warn := func(err error) {
		a.log.Error().Err(err).Msg("state not restored")
		a.reporter.other(protocol.KindJournalSetAside, err.Error())
	}
	memory.restore(warn)
	a.reporter.given.restore(warn)
	a.enroller.restore(warn)
	if err := a.clock.raise(context.Background(), marks, id, cfg.Host, a.log); err != nil {
		warn(err)
	}
	a.lookahead = &lookahead{
		cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, work: a.work, memory: memory, verifier: verifier, client: a.client,
		planned: make(chan *ahead, 1),
	}
	a.rebooter = &rebooter{
		log: a.log, host: cfg.Host, dir: a.dir, status: file, work: a.work, memory: memory, reporter: a.reporter,
		reboots: reboots,
	}
	a.notes = &notes{cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, work: a.work, memory: memory}
	a.assembleActivation(cfg, contact)
	a.assembleLoop(cfg, contact, verifier)
	return nil
}

// assembleActivation makes the parts that an activation leads through.
func (a *agent) assembleActivation(cfg *Config, contact *contact) {
	status, memory := contact.status, contact.memory
	settler := &settler{
		log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, status: status, work: a.work, memory: memory,
		reporter: a.reporter,
	}
	stager := &stager{
		cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, status: status, reporter: a.reporter,
		prober: a.prober, settler: settler, reboots: contact.reboots,
	}
	intake := &intake{
		cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, clock: a.clock, status: status, memory: memory,
		reporter: a.reporter,
	}
	prover := &prover{
		cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, status: status, reporter: a.reporter,
		client: a.client, contact: contact, prober: a.prober, settler: settler,
	}
	a.activator = &activator{
		log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, status: status, work: a.work, memory: memory,
		intake: intake, prover: prover, stager: stager, settler: settler,
		switcher: &switcher{
			log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, status: status, memory: memory, reporter: a.reporter,
			prober: a.prober, intake: intake, stager: stager, settler: settler,
		},
		committer: &committer{
			cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, clock: a.clock, status: status, memory: memory,
			reporter: a.reporter, identity: contact.identity, client: a.client, prover: prover, settler: settler,
			lookahead: a.lookahead,
		},
		sleeper: &sleeper{log: a.log, host: cfg.Host, dir: a.dir, undoer: a.undoer, work: a.work},
	}
	settler.resume = a.activator.advanceFrom
}

// assembleLoop makes the parts that check in.
func (a *agent) assembleLoop(cfg *Config, contact *contact, verifier *verify.Verifier) {
	status, memory := contact.status, contact.memory
	a.loop = &loop{
		cfg: cfg, log: a.log, status: status, work: a.work, reporter: a.reporter, contact: contact, enroller: a.enroller,
		activator: a.activator, settler: a.activator.settler, sleeper: a.activator.sleeper,
		metrics: &metricsFile{path: cfg.MetricsFile, log: a.log, status: status, work: a.work, memory: memory,
			verifier: verifier},
		answers: &answers{
			log: a.log, client: a.client, status: status, reporter: a.reporter, verifier: verifier, contact: contact,
			memory:    memory,
			activator: a.activator, lookahead: a.lookahead,
			recaller: &recaller{
				cfg: cfg, log: a.log, host: cfg.Host, dir: a.dir, clock: a.clock, work: a.work, memory: memory,
				status: status, reporter: a.reporter,
				verifier: verifier, resume: a.activator.advanceFrom,
			},
		},
	}
}

// identity reads this host's keys.
func (a *agent) identity(cfg *Config, trust *verify.TrustFile) (*identity, error) {
	key, err := pki.ReadPrivateKey(cfg.ClientKey)
	if err != nil {
		return nil, err
	}
	id := &identity{
		hostname: cfg.MachineID, certPath: cfg.ClientCert, key: key, token: cfg.TokenFile, now: a.clock.now,
		trust:   trust.Read,
		allowV1: cfg.AllowV1,
	}
	if id.host, err = pki.ReadPrivateKey(cfg.SSHHostKey); err != nil {
		a.log.Warn().Err(err).Msg("reports are not signed")
	}
	return id, nil
}

// newClient makes a client that presents a certificate, or none.
func newClient(cfg *Config, clock *clock, certificate func() (*tls.Certificate, error)) (*client.Client, error) {
	c := client.Config{
		BaseURL: cfg.URL, Certificate: certificate, UserAgent: "nixfleet-agent/" + cfg.Version, Now: clock.now,
		Dial: cfg.Dial,
	}
	if cfg.CACert != "" {
		bundle, err := disk.ReadLinked(cfg.CACert, pki.MaxDocument)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		c.CAPEM = bundle
	}
	return client.New(c)
}

func (a *agent) run(ctx context.Context) error {
	leave, err := a.dir.Only()
	if err != nil {
		return command.Hinted(err, "systemctl status nixfleet-agent")
	}
	defer leave()
	defer a.client.CloseIdle()
	defer a.enroller.anonymous.CloseIdle()
	command.Ready()
	background, stop := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer a.work.group.Wait()
	defer stop()
	loops.Go(func() { a.prober.run(background) })
	loops.Go(func() { command.Watchdog(background, a.loop.alive) })
	loops.Go(func() { a.notes.watch(background) })
	loops.Go(func() { a.rebooter.run(background) })
	loops.Go(func() { a.lookahead.run(background) })

	// An activation that is under way goes on before the control plane is asked.
	a.activator.resume(background)
	if err := a.enroller.enrol(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	a.loop.run(background)
	command.Stopping()
	return nil
}
