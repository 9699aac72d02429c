package page

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// verbs are what may be done with a rollout or a host, in words.
var verbs = map[string]struct{ Label, Means string }{
	protocol.ActionPause:  {"Pause", "No more hosts are given the release. Those that have it go on."},
	protocol.ActionResume: {"Resume", "The rollout goes on where it stands."},
	protocol.ActionCancel: {"Cancel", "The rollout ends as it stands: hosts that have the release keep it."},
	actionRetry:           {"Retry", "The host gets its declared closure once more, although it failed there."},
}

const actionRetry = "retry"

// doneWords say what was done; the address of a page names only which of them.
var doneWords = map[string]string{
	protocol.ActionPause:  "The rollout is paused.",
	protocol.ActionResume: "The rollout is resumed.",
	protocol.ActionCancel: "The rollout is cancelled.",
	actionRetry:           "The host may try again once.",
}

// actionsOf is what may be done with a rollout now.
func actionsOf(s *protocol.RolloutSummary) []string {
	state := protocol.RolloutState(s.State)
	switch {
	case state == protocol.RolloutCancelled:
		return []string{protocol.ActionResume} // of the newest one of its channel; others are refused
	case !state.Open():
		return nil
	case s.Hold != nil, state == protocol.RolloutHalted:
		return []string{protocol.ActionResume, protocol.ActionCancel}
	}
	return []string{protocol.ActionPause, protocol.ActionCancel}
}

// askBody is a form that asks for a reason.
type askBody struct {
	Action, Label, Means string
	What, Place          string // on what, and where it is shown
	Reason, Wrong        string // as it was sent, and what is wrong with it
}

func (p *Page) askHold(r *http.Request) (*sheet, error) {
	s, err := p.rolloutOf(r)
	if err != nil {
		return nil, err
	}
	action := r.PathValue("action")
	if !slices.Contains(actionsOf(s), action) {
		return nil, refuse(http.StatusConflict, "this cannot be done with the rollout as it stands", "")
	}
	return asking(action, "the rollout of "+s.Channel+", "+command.Short(s.Ref), "/rollouts/"+s.RolloutID), nil
}

func (p *Page) askRetry(r *http.Request) (*sheet, error) {
	detail, err := p.plane.Host(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	name := detail.Host.Hostname
	return asking(actionRetry, name, "/hosts/"+url.PathEscape(name)), nil
}

func asking(action, what, place string) *sheet {
	verb := verbs[action]
	return &sheet{Title: verb.Label + " " + what, Name: "act",
		Body: askBody{Action: action, Label: verb.Label, Means: verb.Means, What: what, Place: place}}
}

func (p *Page) hold(r *http.Request) (*sheet, error) {
	ask, err := p.askHold(r)
	if err != nil {
		return nil, err
	}
	return done(r, ask, func(reason string) error {
		return p.plane.Hold(r.Context(), r.PathValue("id"), r.PathValue("action"), reason)
	})
}

func (p *Page) retry(r *http.Request) (*sheet, error) {
	ask, err := p.askRetry(r)
	if err != nil {
		return nil, err
	}
	return done(r, ask, func(reason string) error {
		return p.plane.Retry(r.Context(), r.PathValue("name"), reason)
	})
}

// done does what the form asks for and goes back, or shows the form again.
func done(r *http.Request, ask *sheet, do func(reason string) error) (*sheet, error) {
	body, ok := ask.Body.(askBody)
	if !ok {
		return ask, nil
	}
	reason := strings.TrimSpace(r.PostForm.Get("reason"))
	body.Reason = reason
	switch {
	case reason == "":
		body.Wrong = "Say why: it is recorded beside your name."
	case len(reason) > maxReason || !utf8.ValidString(reason):
		body.Wrong, body.Reason = "At most 500 characters, please.", ""
	case r.PostForm.Get("sure") != "yes":
		body.Wrong = "Tick the box to confirm."
	}
	if body.Wrong != "" {
		ask.Body = body
		return ask, nil
	}
	if err := do(reason); err != nil {
		return nil, err
	}
	return &sheet{Place: body.Place + "?done=" + body.Action}, nil
}
