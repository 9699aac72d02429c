package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	holdTime = 300 * time.Second
	// firstHold is for a check-in after a failure or an enrolment: its answer, which says that
	// all is well again, is shown at once, and still tells whether this control plane holds.
	firstHold = time.Second
	// floorPause is the shortest time between two check-ins.
	floorPause = time.Second
)

// agent is a running agent.
type agent struct {
	cfg      Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	identity *identity
	client   *client.Client // with our certificate
	// anonymous is for enrolment only.
	anonymous *client.Client
	trust     *verify.TrustFile
	verifier  *verify.Verifier
	prober    *prober
	outbox    *outbox
	undoer    *undo.Undoer
	reboots   rebootPolicy
	status    *statusFile
	started   time.Time
	answered  atomic.Bool // the last check-in was
	overdue   atomic.Bool // status shows trouble that the next answer ends
	floor     time.Time   // it is at least this late

	delivering  *semaphore.Weighted // held over the network, so not a mutex
	changed     chan struct{}       // something local that the control plane should hear of
	worker      sync.WaitGroup
	busy        cache[bool]
	told        cache[*verify.Target] // the newest verified target
	quarantine  cache[*quarantine]
	hold        cache[*holdState]
	confirmed   cache[*confirmed]
	fetch       cache[*protocol.FetchOutcome]
	fetching    cache[func()] // gives up the download that is going on
	ahead       cache[*ahead]
	planned     chan *ahead // the newest plan; only the loop of check-ins sends
	lookedAhead string      // head that was looked at for it

	unfetched   *offer         // whose manifest or proof could not be had
	missed      *verify.Target // came while another closure was being fetched
	doubted     time.Time      // when an answer was last not believed
	saidRefusal said           // of a rollback
	saidDoubt   said           // about an answer
	saidRenewal said           // that failed
	saidMetrics said
	brevity     cache[int] // how much a check-in leaves out
	metricsFile metricsFile

	spent             spent
	renewal           renewal
	reportedEnrolment bool
	reportedStale     bool
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

// source is the control plane as a source of signed documents.
type source struct{ *client.Client }

func (s source) HeadProof(ctx context.Context, channel, hostname string) (*protocol.Proof, error) {
	proof, err := s.Client.HeadProof(ctx, channel, hostname)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %w", verify.ErrNoEntry, err)
	}
	return proof, err
}

// sleep waits, or returns early with the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run keeps the host at its declared state until ctx ends. An activation that
// is under way then is taken on by the next agent from its journal.
func Run(ctx context.Context, cfg Config) error {
	a, err := newAgent(cfg)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

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
	dir, err := journal.Open(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	outside, err := journal.Open(verify.OutsideDirectory(cfg.StateDir, cfg.ClientCert))
	if err != nil {
		return nil, err
	}
	manifests, err := journal.Open(dir.Path("rollouts"))
	if err != nil {
		return nil, err
	}
	key, err := pki.ReadPrivateKey(cfg.ClientKey)
	if err != nil {
		return nil, err
	}
	a := &agent{
		cfg: cfg, log: cfg.Log, host: cfg.Host, dir: dir, started: time.Now(),
		delivering: semaphore.NewWeighted(1), changed: make(chan struct{}, 1), planned: make(chan *ahead, 1),
	}
	a.trust = verify.NewTrustFile(cfg.TrustFile, a.log)
	a.identity = &identity{
		hostname: cfg.MachineID, certPath: cfg.ClientCert, key: key, token: cfg.TokenFile, now: a.now, trust: a.trust.Read, allowV1: cfg.AllowV1,
	}
	if a.identity.host, err = pki.ReadPrivateKey(cfg.SSHHostKey); err != nil {
		a.log.Warn().Err(err).Msg("reports are not signed")
	}
	if a.outbox, err = openOutbox(dir); err != nil {
		return nil, err
	}
	checks, err := loadProbes(cfg.HealthChecks)
	if err != nil {
		return nil, err
	}
	a.prober = newProber(checks, a.host, a.tellChange)
	a.undoer = undoerOf(cfg)
	if a.reboots, err = parseRebootPolicy(cfg.RebootPolicy); err != nil {
		return nil, err
	}
	if err := a.reboots.check(context.Background(), a.host); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	a.metricsFile.path = cfg.MetricsFile
	a.status = openStatus(dir, cfg.MachineID)
	a.status.note(func(s *status) { s.MarkCopy = string(outside) })
	marks := verify.Marks{State: dir, Outside: outside}
	a.verifier = verify.New(verify.Config{
		Hostname: cfg.MachineID, Trust: a.trust.Read, Marks: marks, Now: a.now, AllowV1: cfg.AllowV1,
		MaxManifestAge: cfg.MaxManifestAge, Compliance: cfg.ComplianceMode, Manifests: manifests,
	})
	if _, err := a.trust.Read(); err != nil {
		return nil, err
	}
	a.restoreState(marks)
	if a.client, err = a.newClient(a.identity.certificate); err != nil {
		return nil, err
	}
	a.anonymous, err = a.newClient(nil)
	return a, err
}

func (a *agent) newClient(certificate func() (*tls.Certificate, error)) (*client.Client, error) {
	cfg := client.Config{BaseURL: a.cfg.URL, Certificate: certificate, UserAgent: "nixfleet-agent/" + a.cfg.Version, Now: a.now, Dial: a.cfg.Dial}
	if a.cfg.CACert != "" {
		bundle, err := disk.ReadLinked(a.cfg.CACert, pki.MaxDocument)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		cfg.CAPEM = bundle
	}
	return client.New(cfg)
}

// restoreState reads what the last agent left. What cannot be believed is set
// aside and said.
func (a *agent) restoreState(marks verify.Marks) {
	warn := func(err error) {
		a.log.Error().Err(err).Msg("state not restored")
		a.other(protocol.KindJournalSetAside, err.Error())
	}
	a.quarantine.set(journal.Optional[quarantine](a.dir, quarantineFile, warn))
	a.hold.set(journal.Optional[holdState](a.dir, journal.HoldFile, warn))
	a.confirmed.set(journal.Optional[confirmed](a.dir, confirmedFile, warn))
	if e := journal.Optional[enrolled](a.dir, enrolledFile, warn); e != nil {
		a.spent = spent{nonce: e.Nonce, at: time.Now()}
	}
	if err := a.setFloor(context.Background(), marks); err != nil {
		warn(err)
	}
}

func (a *agent) run(ctx context.Context) error {
	leave, err := a.dir.Only()
	if err != nil {
		return command.Hinted(err, "systemctl status nixfleet-agent")
	}
	defer leave()
	defer a.client.CloseIdle()
	defer a.anonymous.CloseIdle()
	command.Ready()
	background, stop := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer a.worker.Wait()
	defer stop()
	loops.Go(func() { a.prober.run(background) })
	loops.Go(func() { command.Watchdog(background, a.alive) })
	loops.Go(func() { a.actsLoop(background) })
	loops.Go(func() { a.rebootLoop(background) })
	loops.Go(func() { a.aheadLoop(background) })

	// What is under way goes on before anybody is asked anything.
	a.resume(background)
	if err := a.enrol(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	a.loop(background)
	command.Stopping()
	return nil
}

// stallLimit is how long the loop may be silent before systemd restarts us.
const stallLimit = holdTime + 5*time.Minute

// alive says that the loop goes on, to systemd's watchdog.
func (a *agent) alive() bool { return time.Since(a.status.lastTurn()) < stallLimit }

// tellChange cancels a held check-in and sends a new one.
func (a *agent) tellChange() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// loop checks in for ever.
func (a *agent) loop(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		a.status.turn()
		if !a.busy.get() { // a worker settles its own, or goes on from it
			a.undoOverslept(ctx)
			a.settle(ctx)
		}
		a.takeMissed(ctx)
		a.deliverWithin(ctx, deliverTime)
		a.renew(ctx)
		pause, err := a.turn(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errLocalChange):
			pause = floorPause
		case err != nil:
			failures++
			pause = a.failed(err, failures)
			if err := a.enrolAnew(ctx, err); err != nil && ctx.Err() == nil {
				a.log.Error().Err(err).Msg("not enrolled again")
			}
		default:
			failures = 0
		}
		a.writeMetrics()
		if a.rest(ctx, pause) != nil {
			return
		}
	}
}

// rest sleeps, and lets systemd know meanwhile that this is what the loop does.
func (a *agent) rest(ctx context.Context, pause time.Duration) error {
	for end := time.Now().Add(pause); ; {
		a.status.turn()
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err()
		}
		if err := sleep(ctx, min(left, time.Minute)); err != nil {
			return err
		}
	}
}

// errLocalChange: a held check-in was given up to send a newer one.
var errLocalChange = errors.New("local change")

// turn is one check-in and what follows from its answer.
func (a *agent) turn(ctx context.Context) (pause time.Duration, err error) {
	hold := holdTime
	switch {
	case !a.outbox.empty():
		hold = 0 // what could not be delivered just now is not to wait for so long
	case a.overdue.Load():
		hold = firstHold
	}
	answer, sent, trial := a.checkinTrial(ctx)
	if answer == nil {
		answer, sent, err = a.checkin(ctx, hold)
		a.judgeTrial(trial, err)
		if err != nil {
			answer, sent, err = a.checkinPrevious(ctx, err)
		}
	}
	if errors.Is(err, errUnproven) {
		return floorPause, nil
	}
	if err != nil {
		return 0, err
	}
	a.handle(ctx, answer, sent)
	if answer.Held {
		return floorPause, nil
	}
	next := min(time.Duration(answer.NextCheckinSecs)*time.Second, maxContact)
	next = max(min(next, a.cfg.PollInterval), floorPause)
	return next/2 + a.cfg.Jitter(next/2+1), nil
}

// failed is how long to wait after a failure: full jitter over a doubling
// time, and what the control plane asks for, within 15 minutes.
func (a *agent) failed(err error, failures int) time.Duration {
	limit := min(a.cfg.PollInterval<<min(failures-1, 3), maxContact)
	pause := max(floorPause, a.cfg.Jitter(limit)+limit/10)
	var refused *client.Error
	if errors.As(err, &refused) && refused.RetryAfter > 0 {
		pause = min(refused.RetryAfter, maxContact)/2 + a.cfg.Jitter(min(refused.RetryAfter, maxContact)/2+1)
	}
	a.answered.Store(false)
	a.overdue.Store(true)
	if refused != nil && refused.Status == http.StatusRequestEntityTooLarge {
		a.brevity.set(min(a.brevity.get()+1, briefest))
	}
	a.log.Warn().Err(err).Int("failures", failures).Dur("retry_in", pause).Msg("check-in failed")
	a.status.note(func(s *status) { s.ContactError = err.Error() })
	a.reportStale()
	return pause
}

// enrolAnew gets another certificate when this one is not accepted, or is over, and
// there is a token that has not been used. One that is still valid is kept until there is
// another: it may be the control plane that is wrong.
func (a *agent) enrolAnew(ctx context.Context, err error) error {
	valid := a.identity.usable() != nil
	if a.cfg.TokenFile == "" || valid && !certificateDenied(err) {
		return nil
	}
	if token, err := a.identity.readToken(a.cfg.SSHHostKey); err != nil || a.spent.holds(token.Claims.Nonce) {
		return nil
	}
	if !valid {
		return a.enrol(ctx)
	}
	return a.enrolOnce(ctx)
}

// handle verifies an answer and acts on it.
func (a *agent) handle(ctx context.Context, answer *protocol.CheckinResponse, sent time.Time) {
	a.answered.Store(true)
	a.overdue.Store(false)
	a.status.note(func(s *status) { s.LastContact, s.ContactError = pki.At(time.Now()), "" })
	known := a.verifier.HeadHash()
	if err := a.verifier.UpdateHead(ctx, source{a.client}, answer.Head); err != nil {
		a.distrust(answer.Target, err)
		a.reportStale()
		return
	}
	if f := a.fetch.get(); a.verifier.HeadHash() != known && f != nil && f.Result != protocol.FetchOK {
		// What failed before was of an older release, or has been had by now.
		a.fetch.set(&protocol.FetchOutcome{Result: protocol.FetchOK, RolloutID: nonEmpty(a.verifier.Head().RolloutID)})
	}
	a.reportStale()
	if a.verifier.Mine() {
		a.follow(ctx, a.verifier.Head().Intent)
	}
	// A rollback that is refused does not keep the host from what mends it.
	if answer.Rollback != nil && a.rollback(ctx, answer.Rollback) {
		return
	}
	if answer.Target == nil {
		a.fetchAgain(ctx, answer.Head)
		a.planAhead(ctx)
		if answer.Head == nil {
			a.forgetDoubt()
		}
		// What an activation waits for, a boot or its own agent, is still waited for.
		if j, err := a.dir.Journal(); err == nil && j == nil && !a.busy.get() {
			a.waiting("nothing: the control plane has no other target for this host")
		}
		return
	}
	a.consider(ctx, &offer{answer.Target, sent}, answer.Head)
}

// forgetDoubt takes back, after a time, that an answer could not be believed: a control
// plane without heads offers nothing for as long as this host says so, and may not be the
// one that it is said of.
func (a *agent) forgetDoubt() {
	f := a.fetch.get()
	if f == nil || f.Result != protocol.FetchVerifyFailed {
		return
	}
	if time.Since(a.doubted) > maxContact {
		a.fetch.set(&protocol.FetchOutcome{Result: protocol.FetchNone})
	}
}

// offer is a target as it came, and when it was asked for.
type offer struct {
	target *protocol.Target
	sent   time.Time
}

// consider verifies a target and takes it.
func (a *agent) consider(ctx context.Context, o *offer, head *protocol.HeadRef) {
	a.unfetched = nil
	w, err := a.verifier.Target(ctx, source{a.client}, o.target, head, o.sent)
	if err != nil {
		if a.distrust(o.target, err) == protocol.FetchFailed {
			a.unfetched = o
		}
		return
	}
	a.fetch.set(&protocol.FetchOutcome{Result: protocol.FetchOK, RolloutID: nonEmpty(w.RolloutID())})
	if w.Late() {
		return // it is offered again, now that its manifest could be had
	}
	a.take(ctx, w)
}

// fetchAgain tries once more what could not be fetched for a target. A control plane
// offers no target again whose fetch has failed, so that nobody else would [A20].
func (a *agent) fetchAgain(ctx context.Context, head *protocol.HeadRef) {
	o := a.unfetched
	if o == nil {
		return
	}
	if head != nil && a.verifier.Head().RolloutID != o.target.RolloutID {
		a.unfetched = nil
		return
	}
	a.consider(ctx, o, head)
}

// distrust notes and reports an answer that did not verify, and gives the outcome
// of the fetch.
func (a *agent) distrust(t *protocol.Target, err error) (result string) {
	if errors.Is(err, verify.ErrReplaced) {
		a.log.Info().Err(err).Msg("answer is out of date")
		return ""
	}
	text := protocol.Clip(err.Error(), maxReason)
	a.log.Error().Str(zerolog.ErrorFieldName, text).Msg("answer not believed")
	if t != nil {
		// What nothing has verified is kept and reported no longer than it may be.
		bounded := *t
		for _, s := range []*string{&bounded.RolloutID, &bounded.ClosureHash, &bounded.ChannelRef} {
			*s = protocol.Clip(*s, verify.MaxReference)
		}
		t = &bounded
	}
	outcome := &protocol.FetchOutcome{Result: protocol.FetchVerifyFailed, Error: &text}
	event := ""
	if v := (*verify.Refusal)(nil); errors.As(err, &v) {
		outcome.Result, event = v.Fetch, v.Event
	}
	if t != nil {
		outcome.RolloutID = &t.RolloutID
	}
	a.fetch.set(outcome)
	a.doubted = time.Now()
	a.status.note(func(s *status) {
		s.Waiting, s.Next = "refused what the control plane said: "+text, "compare with nixfleet verify on the release; a control plane that lies looks like this"
	})
	rollout := ""
	if t != nil {
		rollout = t.RolloutID
	}
	what := event + " " + rollout
	if event != protocol.EventStaleTarget { // whose text tells the age
		what += " " + text
	}
	if a.saidDoubt.lately(what) {
		return outcome.Result
	}
	switch event {
	case protocol.EventStaleTarget:
		if old := (*verify.Stale)(nil); t != nil && errors.As(err, &old) {
			a.report(event, t.ChannelRef, protocol.StaleTarget{
				ClosureHash: t.ClosureHash, ChannelRef: t.ChannelRef, SignedAt: pki.At(old.SignedAt),
				FreshnessWindowSecs: uint32(min(old.Window/time.Second, math.MaxUint32)), AgeSecs: int64(old.Age / time.Second),
			})
		}
	case protocol.EventVerifyMismatch:
		if t != nil {
			a.report(event, t.ChannelRef, protocol.VerifyMismatch{Expected: text, Actual: t.ClosureHash})
		}
	case protocol.EventTrustError:
		a.report(event, "", protocol.Reasoned{Reason: text})
	case protocol.EventManifestMissing, protocol.EventManifestVerifyFailed, protocol.EventManifestMismatch:
		a.report(event, "", protocol.ManifestProblem{RolloutID: rollout, Reason: text})
	}
	return outcome.Result
}

// reportStale makes withholding visible: without a head fresher than its
// window this host says so, once per time that it begins.
func (a *agent) reportStale() {
	over, stale := a.verifier.Stale()
	a.status.note(func(s *status) {
		s.Stale = ""
		if stale {
			s.Stale = fmt.Sprintf("release-stale: the newest release is %s past its window", over.Round(time.Second))
		}
	})
	if stale && !a.reportedStale {
		a.log.Warn().Dur("over", over).Msg("release-stale")
		a.other(protocol.KindReleaseStale, "the newest release is past its window by "+over.Round(time.Second).String())
	}
	a.reportedStale = stale
}
