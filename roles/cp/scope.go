package cp

import (
	"net/http"
	"slices"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// within says where the channel of a request stands, for operators whose scope names
// channels.
type within int

const (
	// anywhere is what concerns the whole fleet: a scope with channels does not have it.
	anywhere within = iota
	// itself is what the handler limits to the channels of the scope.
	itself
	// byHost, byRollout and byChannel are the path's {name} or {host}, {id}, and {channel}
	// or {name}.
	byHost
	byRollout
	byChannel
	// unscoped is what an operator with a scope may not do at all.
	unscoped
)

// limit is what a scope must have for a route.
type limit struct {
	verb  string
	where within
}

// limits are those of the routes that operators may call; one without a row is for
// unscoped certificates.
var limits = map[string]limit{
	"POST /v1/agent/renew":                 {"", unscoped},
	"GET /v1/agent/closure/{hash}":         {pki.VerbRead, anywhere},
	"GET /v1/heads/{channel}":              {pki.VerbRead, byChannel},
	"GET /v1/heads/{channel}/sig":          {pki.VerbRead, byChannel},
	"GET /v1/heads/{channel}/proof/{host}": {pki.VerbRead, byChannel},
	"GET /v1/rollouts/{id}":                {pki.VerbRead, byRollout},
	"GET /v1/rollouts/{id}/sig":            {pki.VerbRead, byRollout},
	"GET /v1/whoami":                       {"", itself},
	"GET /v1/hosts":                        {pki.VerbRead, itself},
	"GET /v1/channels":                     {pki.VerbRead, itself},
	"GET /v1/channels/{name}":              {pki.VerbRead, byChannel},
	"GET /v1/deferrals":                    {pki.VerbRead, anywhere},
	"GET /v1/host-reports":                 {pki.VerbRead, anywhere},
	"GET /v1/rollouts":                     {pki.VerbRead, itself},
	"GET /v1/rollouts/{id}/lifecycle":      {pki.VerbRead, byRollout},
	"GET /v1/rollouts/{id}/trace":          {pki.VerbRead, byRollout},
	"GET /v1/rollouts/{id}/waves":          {pki.VerbRead, byRollout},
	"GET /metrics":                         {pki.VerbRead, anywhere},
	"GET /v1/hosts/{name}":                 {pki.VerbRead, byHost},
	"GET /v1/hosts/{name}/explain":         {pki.VerbRead, byHost},
	"GET /v1/certificates":                 {pki.VerbRead, anywhere},
	"GET /v1/plan":                         {pki.VerbRead, anywhere},
	"POST /v1/plan":                        {pki.VerbRead, anywhere},
	"GET /v1/events":                       {pki.VerbRead, itself},
	"GET /v1/history":                      {pki.VerbRead, itself},
	"GET /v1/audit":                        {pki.VerbRead, anywhere},
	"GET /v1/revocations":                  {pki.VerbRead, anywhere},
	"GET /v1/openapi.json":                 {"", itself},
	"POST /v1/rollouts/{id}/pause":         {pki.VerbPause, byRollout},
	"POST /v1/rollouts/{id}/resume":        {pki.VerbResume, byRollout},
	"POST /v1/rollouts/{id}/cancel":        {pki.VerbCancel, byRollout},
	"POST /v1/channels/{name}/freeze":      {pki.VerbPause, byChannel},
	"POST /v1/channels/{name}/thaw":        {pki.VerbResume, byChannel},
	"POST /v1/hosts/{name}/retry":          {pki.VerbRetry, byHost},
	"POST /v1/poke":                        {pki.VerbPoke, itself},
	"POST /v1/revocations":                 {pki.VerbRevoke, itself},
	"POST /v1/revocations/undo":            {"", unscoped},
}

// scopes are those of a caller: of the certificate, and what the signed fleet narrows
// the name to.
type scopes []*pki.Scope

func (s scopes) channel(name string) bool {
	for _, one := range s {
		if !one.AllowsChannel(name) {
			return false
		}
	}
	return true
}

// events are those of a page that the scopes have.
func (s scopes) events(page []protocol.Event) []protocol.Event {
	if len(s) == 0 {
		return page
	}
	return slices.DeleteFunc(slices.Clone(page), func(e protocol.Event) bool { return !s.channel(e.Channel) })
}

func (s scopes) everyChannel() bool {
	for _, one := range s {
		if len(one.Channels) > 0 {
			return false
		}
	}
	return true
}

// scopesOf are those of an operator by the release in force; none for everything.
func (d *door) scopesOf(id pki.Identity) (s scopes) {
	if id.Role != pki.RoleOperator {
		return nil
	}
	if id.Scope != nil {
		s = append(s, id.Scope)
	}
	if narrowed := d.snapshot.Load().rel.Fleet.OperatorScopes[id.Name]; narrowed != nil {
		s = append(s, narrowed)
	}
	return s
}

// withinScope refuses what the caller's scopes do not have.
func (d *door) withinScope(c *call, pattern string) error {
	if len(c.scopes) == 0 {
		return nil
	}
	l, listed := limits[pattern]
	if !listed || l.where == unscoped {
		return refused(http.StatusForbidden, codeScope, "this needs an operator's certificate without a scope")
	}
	for _, s := range c.scopes {
		if l.verb != "" && !s.AllowsVerb(l.verb) {
			return refused(http.StatusForbidden, codeScope, "the scope of this operator does not have the verb %s",
				l.verb)
		}
	}
	if c.scopes.everyChannel() || l.where == itself {
		return nil
	}
	channel, known := d.channelOf(c, l.where)
	switch {
	case l.where == anywhere:
		return refused(http.StatusForbidden, codeScope,
			"this is about all channels, and the scope of this operator names some")
	case known && !c.scopes.channel(channel):
		return refused(http.StatusForbidden, codeScope, "the scope of this operator does not have the channel")
	}
	return nil
}

const codeScope = "out-of-scope"

// channelOf is the channel that a path is about; what is not known is answered as such.
func (d *door) channelOf(c *call, where within) (channel string, known bool) {
	switch where {
	case byChannel:
		if channel = c.PathValue("channel"); channel == "" {
			channel = c.PathValue("name")
		}
		return channel, true
	case byHost:
		if h := d.snapshot.Load().rel.Fleet.Hosts[c.PathValue("name")]; h != nil {
			return h.Channel, true
		}
	case byRollout:
		return d.channelOfRollout(c.PathValue("id"))
	}
	return "", false
}

// mayRevoke refuses what a scoped operator may not revoke: all but hosts of its channels.
func (o *acts) mayRevoke(c *call, name string) error {
	if len(c.scopes) == 0 {
		return nil
	}
	h := o.release.snapshot.Load().rel.Fleet.Hosts[bareName(name, o.cfg.AgentSuffix)]
	switch {
	case h == nil:
		return refused(http.StatusForbidden, codeScope, "only an operator without a scope revokes what is not a host")
	case !c.scopes.channel(h.Channel):
		return refused(http.StatusForbidden, codeScope,
			"the scope of this operator does not have the channel of this host")
	}
	return nil
}
