package explore

import "fmt"

// words says what happens, for people.
func (m move) words() string {
	format := moveWords[m.kind()]
	if about := m.about(); about != "" {
		return fmt.Sprintf(format, about)
	}
	return format
}

var moveWords = map[moveKind]string{
	mSend:              "host %s delivers its oldest report",
	mRecover:           "the probe of host %s passes again",
	mBegin:             "host %s begins to activate its target",
	mSwitch:            "host %s has switched and runs its target",
	mConfirm:           "host %s confirms and hears the answer",
	mBoot:              "host %s boots into what it staged",
	mCheckin:           "host %s checks in",
	mTime:              "time goes on to the next deadline",
	mRelease:           "the next release is published",
	mPause:             "an operator pauses the rollout of %s",
	mResume:            "an operator resumes the rollout of %s",
	mCancel:            "an operator cancels the rollout of %s",
	mRetry:             "an operator has host %s try again",
	mCheckinUnanswered: "host %s checks in, and the answer is lost",
	mConfirmUnanswered: "host %s confirms, and the answer is lost",
	mConfirmLost:       "host %s confirms, and nobody hears it",
	mSendUnanswered:    "host %s delivers its oldest report, and the answer is lost",
	mReportLost:        "host %s gives its oldest report up",
	mCheckinLate:       "host %s checks in; the request stays on its way, and the host gives it up",
	mConfirmLate:       "host %s confirms; the request stays on its way, and the host gives it up",
	mArrive:            "the late request of host %s arrives",
	mFail:              "the activation fails on host %s, which goes back and blames the release",
	mFailLocally:       "host %s cannot do it, for reasons of its own",
	mPowerCut:          "host %s loses its power and boots",
	mFallBack:          "host %s boots, and not into what it staged",
	mStage:             "host %s stages its target for the next boot",
	mCutOff:            "the connection of host %s breaks",
	mSick:              "the probe of host %s fails",
	mUnfit:             "a compliance control fails on host %s",
	mByHand:            "root takes host %s back to what it ran before",
	mTimeBefore:        "time goes on to just before the next deadline",
	mTimeAt:            "time goes on to the very next deadline",
	mTimeAfter:         "time goes on to just after the next deadline",
	mRestart:           "the control plane starts again",
	mWipe:              "the control plane loses its database and starts again",
	mSignAgain:         "the release is signed again",
}
