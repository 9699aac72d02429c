package explore

import (
	"fmt"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

type releaseInForce = fleet.Release

// A move is one thing that happens: a kind in the upper byte, a host or channel in the lower.
type move uint16

type moveKind uint8

const (
	// What a fleet does when nothing goes wrong, in the order in which it is done when all faults stop.
	mSend moveKind = iota
	mRecover
	mBegin
	mSwitch
	mConfirm
	mBoot // into what is staged
	mCheckin
	mTime
	mCalm // the end of these
	// The next release, and people.
	mRelease
	mPause
	mResume
	mCancel
	mRetry
	// What goes wrong.
	mCheckinUnanswered
	mConfirmUnanswered
	mConfirmLost
	mSendUnanswered
	mReportLost
	mCheckinLate
	mConfirmLate
	mArrive
	mFail
	mFailLocally
	mPowerCut
	mFallBack
	mStage
	mCutOff
	mSick
	mUnfit
	mByHand
	mTimeBefore
	mTimeAt
	mTimeAfter
	mRestart
	mWipe
	mSignAgain
	mKinds
)

var moveNames = map[moveKind]string{
	mSend: "send", mRecover: "recover", mBegin: "begin", mSwitch: "switch", mConfirm: "confirm", mBoot: "boot",
	mCheckin: "checkin",
	mTime:    "time", mRelease: "release", mPause: "pause", mResume: "resume", mCancel: "cancel", mRetry: "retry",
	mCheckinUnanswered: "checkin-unanswered", mConfirmUnanswered: "confirm-unanswered", mConfirmLost: "confirm-lost",
	mSendUnanswered: "send-unanswered", mReportLost: "report-lost", mCheckinLate: "checkin-late",
	mConfirmLate: "confirm-late",
	mArrive:      "arrive", mFail: "fail", mFailLocally: "fail-locally", mPowerCut: "power-cut", mFallBack: "fall-back",
	mStage:  "stage",
	mCutOff: "cut-off", mSick: "sick", mUnfit: "unfit", mByHand: "by-hand", mTimeBefore: "time-before", mTimeAt: "time-at",
	mTimeAfter: "time-after",
	mRestart:   "restart", mWipe: "wipe", mSignAgain: "sign-again",
}

func of(k moveKind, x int) move { return move(k)<<8 | move(x) }

func (m move) kind() moveKind { return moveKind(m >> 8) }

func (m move) on() int { return int(m & 0xff) }

// perHost, perChannel and none say what a move is about.
func (m move) about() string {
	switch m.kind() {
	case mTime, mTimeBefore, mTimeAt, mTimeAfter, mRestart, mWipe, mRelease, mSignAgain:
		return ""
	case mPause, mResume, mCancel:
		return channelName(m.on())
	}
	return hostName(m.on())
}

func (m move) String() string { return strings.TrimSpace(moveNames[m.kind()] + " " + m.about()) }

func parseMove(s string) (move, error) {
	word, about, _ := strings.Cut(strings.TrimSpace(s), " ")
	for k, name := range moveNames {
		if name != word {
			continue
		}
		for x := range maxHosts {
			if m := of(k, x); m.about() == about {
				return m, nil
			}
		}
	}
	return 0, fmt.Errorf("no move is called %q", s)
}

// moves lists what may happen next, in a fixed order.
func (r *runner) moves(n *node, list []move) []move {
	s := r.spec
	for h := range s.hosts {
		list = r.calmMoves(n, h, list)
	}
	for h, p := range s.hosts {
		if !p.v1 || n.Boxes[h].Phase == idle { // an agent of v1 does one thing at a time
			list = append(list, of(mCheckin, h))
		}
	}
	list = append(list, of(mTime, 0))
	if int(n.Release) < len(s.contents)-1 && n.Quiet {
		list = append(list, of(mRelease, 0))
	}
	if n.Acts > 0 && n.Quiet {
		list = r.acts(n, list)
	}
	for h := range s.hosts {
		if n.Boxes[h].Late.Kind != noMessage {
			list = append(list, of(mArrive, h))
		}
	}
	if n.Faults <= 0 {
		return list
	}
	for h := range s.hosts {
		list = r.faults(n, h, list)
	}
	for _, x := range []struct {
		fault rune
		kinds []moveKind
	}{
		{edgeOfTime, []moveKind{mTimeBefore, mTimeAt, mTimeAfter}},
		{cpRestart, []moveKind{mRestart}},
		{cpWiped, []moveKind{mWipe}},
	} {
		if s.can(x.fault) {
			for _, k := range x.kinds {
				list = append(list, of(k, 0))
			}
		}
	}
	if s.can(signAgain) && n.Quiet && n.Signed[n.content(s)] < 3 {
		list = append(list, of(mSignAgain, 0))
	}
	return list
}

func (r *runner) calmMoves(n *node, h int, list []move) []move {
	b := &n.Boxes[h]
	if b.Outs > 0 {
		list = append(list, of(mSend, h))
	}
	if b.Sick {
		list = append(list, of(mRecover, h))
	}
	switch b.Phase {
	case told:
		if b.Outs <= 1 { // its reports are not that late
			list = append(list, of(mBegin, h))
		}
	case switching:
		list = append(list, of(mSwitch, h))
	case checking, committed:
		list = append(list, of(mConfirm, h))
	case staged:
		list = append(list, of(mBoot, h))
	}
	return list
}

func (r *runner) acts(n *node, list []move) []move {
	for c := range r.spec.channels {
		switch l := &n.Lines[c]; {
		case r.spec.person(pauseAct) && !l.Paused && l.Halted == none && !l.Converged:
			list = append(list, of(mPause, c))
		case r.spec.person(pauseAct) && l.Paused, r.spec.person(resumeHalted) && l.Halted == halted:
			list = append(list, of(mResume, c))
		case r.spec.person(resumeHalted) && l.Halted == none && !l.Converged:
			list = append(list, of(mResume, c))
		}
		if r.spec.person(cancelAct) && n.Lines[c].Halted != cancelled && !n.Lines[c].Converged {
			list = append(list, of(mCancel, c))
		}
	}
	if r.spec.person(retryAct) {
		for h := range r.spec.hosts {
			list = append(list, of(mRetry, h))
		}
	}
	return list
}

func (r *runner) faults(n *node, h int, list []move) []move {
	b, s := &n.Boxes[h], r.spec
	v1 := s.hosts[h].v1
	confirms := b.Phase == checking || b.Phase == committed
	active := b.Phase == switching || b.Phase == checking
	for _, x := range []struct {
		fault rune
		when  bool
		kind  moveKind
	}{
		{lostAnswer, b.Phase == idle || b.Phase == told && !v1, mCheckinUnanswered},
		{lostAnswer, confirms, mConfirmUnanswered},
		{lostAnswer, b.Phase == checking && !v1, mConfirmLost},
		{lostAnswer, b.Outs > 0 && !b.Out[0].Taken, mSendUnanswered},
		{reportLost, b.Outs > 0 && v1, mReportLost},
		{lateRequest, b.Late.Kind == noMessage && (b.Phase == idle || !v1), mCheckinLate},
		{lateRequest, b.Late.Kind == noMessage && confirms, mConfirmLate},
		{hostFails, active && s.hosts[h].bad, mFail},
		{localFails, active || b.Phase == told, mFailLocally},
		{powerCut, b.Phase != staged, mPowerCut},
		{stages, b.Phase == told && !v1, mStage},
		{stages, b.Phase == staged, mFallBack},
		{cutOff, b.Until > n.Now, mCutOff},
		{sick, !b.Sick && s.probes, mSick},
		{unfit, b.Running > 0 && s.comply, mUnfit},
		{byHand, b.Phase == idle && b.Running > 0, mByHand},
	} {
		if x.when && s.can(x.fault) {
			list = append(list, of(x.kind, h))
		}
	}
	return list
}

// apply makes a move. False: it cannot be made, and the state is spoilt.
func (r *runner) apply(n *node, m move) bool {
	k, x := m.kind(), m.on()
	n.Quiet = k == mTime || k >= mTimeBefore && k <= mTimeAfter
	switch {
	case k > mArrive, k > mRetry && k < mArrive:
		if n.Faults--; n.Faults < 0 {
			return false
		}
	case k > mRelease && k <= mRetry:
		if n.Acts--; n.Acts < 0 {
			return false
		}
	}
	switch k {
	case mTime, mTimeBefore, mTimeAt, mTimeAfter:
		return r.pass(n, k)
	case mRelease:
		r.publish(n, n.Release+1)
	case mSignAgain:
		r.publish(n, n.Release)
	case mRestart, mWipe:
		r.restart(n, k == mWipe)
	case mPause, mResume, mCancel:
		return r.hold(n, x, actions[k])
	case mRetry:
		c, err := n.W.Retry(hostName(x), "ann", "look again", n.time())
		if err != nil {
			return false
		}
		r.took(n, c)
		n.Boxes[x].Lease = 0
	case mCheckin, mCheckinUnanswered:
		r.checkin(n, x, k == mCheckin)
	case mConfirm, mConfirmUnanswered:
		return r.confirm(n, x, k == mConfirm)
	case mSend, mSendUnanswered:
		return r.send(n, x, k == mSend)
	case mArrive:
		r.arrive(n, x)
	default:
		was := n.Boxes[x]
		if !r.change(n, k, x) {
			return false
		}
		r.stir(n, x, &was)
	}
	return true
}

// stir: a host that has something new to say gives its held request up.
func (r *runner) stir(n *node, h int, was *box) {
	b := &n.Boxes[h]
	if b.Running != was.Running || b.Phase != was.Phase || b.Sick != was.Sick || b.Quarantined != was.Quarantined {
		r.letGo(n, h)
	}
}

func (r *runner) letGo(n *node, h int) {
	if b := &n.Boxes[h]; b.Until > 0 {
		b.Until, b.Woken = 0, false
		n.W.Gone(hostName(h), n.time())
	}
}

var actions = map[moveKind]string{
	mPause: protocol.ActionPause, mResume: protocol.ActionResume, mCancel: protocol.ActionCancel,
}

// change is what befalls a host without a word to the control plane.
func (r *runner) change(n *node, k moveKind, h int) bool {
	b := &n.Boxes[h]
	switch k {
	case mBegin:
		return r.begin(n, h)
	case mSwitch:
		if b.Phase != switching {
			return false
		}
		b.Running, b.Phase, b.Proven = b.Closure, checking, 0
		n.Failed[r.spec.hosts[h].channel][b.Closure] = n.Failed[r.spec.hosts[h].channel][b.Closure] || b.Sick
	case mBoot:
		b.Boot ^= 1
		b.Running, b.Phase, b.Proven = b.Closure, checking, 0
		b.Deadline = n.Now + r.limits.ConfirmWindow.Milliseconds()
		b.Until = 0
	case mFallBack:
		b.Boot ^= 1
		b.undo(undone)
		n.Failed[r.spec.hosts[h].channel][b.Quarantined] = true
		b.Until = 0
	case mStage:
		b.say(deferred, b.ID, 0)
		b.Before, b.Phase, b.StartBy, b.Lease = b.Running, staged, 0, 0
	case mConfirmLost:
		b.Phase, b.Proven, b.Deadline = committed, n.Now, 0
	case mConfirmLate, mCheckinLate:
		b.Late = message{Kind: lateCheckin, ID: b.ID, Closure: b.Closure, Of: b.Of}
		b.LateRunning, b.LatePhase = b.Running, b.Phase
		if k == mConfirmLate {
			b.Late.Kind = lateConfirm
			if !r.spec.hosts[h].v1 && b.Phase == checking {
				b.Phase, b.Proven, b.Deadline = committed, n.Now, 0
			}
		}
	case mFail:
		n.Failed[r.spec.hosts[h].channel][b.Closure] = true
		b.undo(undone)
	case mFailLocally:
		if b.Phase == told {
			b.Fetch, b.FetchOf = b.ID, b.Of
			b.say(realiseFailed, b.ID, 0)
			b.idleNow()
			b.Lease = 0
			break
		}
		b.undo(undoneLocal)
	case mPowerCut:
		b.Boot ^= 1
		b.Until = 0
		switch b.Phase {
		case switching, checking:
			b.undo(undonePower)
		case told:
			b.idleNow()
			b.Lease = 0
		}
	case mCutOff:
		r.letGo(n, h)
	case mSick, mRecover:
		b.Sick = k == mSick
		n.Failed[r.spec.hosts[h].channel][b.Running] = true
	case mUnfit:
		b.say(nonCompliant, b.Confirmed, 0)
		if last := &b.Out[b.Outs-1]; b.Confirmed == 0 {
			last.ID = b.ID
		} else {
			last.Of = b.ConfirmedOf
		}
	case mByHand:
		b.Running, b.Proven, b.Confirmed, b.ConfirmedAt, b.ConfirmedOf = 0, 1, 0, 0, dispatched{}
	case mReportLost:
		b.said()
	default:
		return false
	}
	return true
}

// begin starts an activation, which a lease must allow.
func (r *runner) begin(n *node, h int) bool {
	b := &n.Boxes[h]
	if b.Phase != told || n.Now > b.StartBy && !r.spec.hosts[h].v1 {
		return false
	}
	b.Phase, b.Before, b.Fetch, b.FetchOf, b.Lease = switching, b.Running, 0, dispatched{}, 0
	b.Deadline, b.StartBy = n.Now+r.limits.ConfirmWindow.Milliseconds(), 0
	if b.Running == b.Closure {
		b.Phase, b.Deadline = committed, 0
		return true
	}
	if !r.spec.hosts[h].v1 {
		b.say(started, b.ID, b.Closure)
	}
	if list := n.inFlight(); r.spec.budget > 0 && len(list) > r.spec.budget {
		r.violate(invBudget, "the budget allows %d host at once, and %s are switching", r.spec.budget, hostList(list))
	}
	return true
}

func hostList(list []int) string {
	var names []string
	for _, h := range list {
		names = append(names, hostName(h))
	}
	return strings.Join(names, " and ")
}
