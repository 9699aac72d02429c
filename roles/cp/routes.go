package cp

import (
	"net/http"
	"slices"
	"strings"

	"nixfleet/roles/protocol"
)

// callers says who may call a route.
type callers int

const (
	// everybody is let in without any check.
	everybody callers = iota
	// tokens are hosts that have a token in place of a certificate; each address
	// and all of them together have a bound.
	tokens
	// forges have the webhook's token; each address has a bound.
	forges
	// hosts are those that the body names; others are refused once it was read.
	hosts
	// members are hosts and operators; the handler looks at what they ask for.
	members
	// readers are operators, and hosts where reads are open to them.
	readers
	// operators only.
	operators
)

// route is one row of the API: what is asked, who may ask, who answers, and the
// words for its document.
type route struct {
	pattern string
	who     callers
	handle  handler
	about   about
}

// about describes a route in the API's document.
type about struct {
	summary string
	takes   any    // the type of the body, or its media type; nil for none
	gives   any    // the type of the answer, its media type, or a status; nil for 204
	query   string // names of the query's parameters, with spaces between
}

// media is the type of a body that is not one of our JSON documents.
type media string

const (
	signedJSON media = "application/json"
	signature  media = "application/octet-stream"
	narinfo    media = "text/x-nix-narinfo"
	stream     media = "text/event-stream"
	exposition media = "text/plain"
)

func (rt *route) method() string { return rt.pattern[:strings.IndexByte(rt.pattern, ' ')] }
func (rt *route) path() string   { return rt.pattern[strings.IndexByte(rt.pattern, '/'):] }

const webhookPath = "/v1/webhook"

// handlers are the parts that answer.
type handlers struct {
	readiness *readiness
	issuer    *issuer
	checkins  *checkins
	reports   *reports
	documents *documents
	views     *views
	plans     *plans
	acts      *acts
	webhook   *webhook
}

// table is the API.
func (h *handlers) table(counted *registry) []route {
	return slices.Concat(h.forHosts(), h.forReaders(counted), h.forOperators())
}

// forHosts are the routes that hosts need.
func (h *handlers) forHosts() []route {
	return []route{
		{"GET /healthz", everybody, h.views.health, about{"report that the process is up", nil, healthResponse{}, ""}},
		{"GET /readyz", everybody, h.readiness.ready, about{"report what cannot be done now", nil, protocol.Ready{}, ""}},

		{"POST /v1/enroll", tokens, h.issuer.enroll,
			about{"get the first certificate of a host", protocol.EnrollRequest{}, protocol.CertResponse{}, ""}},
		{"POST /v1/agent/bootstrap-report", tokens, h.issuer.bootstrapReport,
			about{"report what keeps a host from enrolling", protocol.BootstrapReport{}, nil, ""}},
		{"POST " + webhookPath, forges, h.webhook.announce,
			about{"announce a commit", media("*/*"), nothingBut(http.StatusAccepted), ""}},

		{"POST /v1/agent/renew", members, h.issuer.renew,
			about{"get a new certificate", protocol.RenewRequest{}, protocol.CertResponse{}, ""}},
		{"POST /v1/agent/checkin", hosts, h.checkins.checkin,
			about{"say what a host runs, be told what it should run", protocol.CheckinRequest{}, protocol.CheckinResponse{},
				""}},
		{"POST /v1/agent/confirm", hosts, h.checkins.confirm,
			about{"confirm a closure that has proven itself", protocol.ConfirmRequest{}, nil, ""}},
		{"POST /v1/agent/report", hosts, h.reports.report,
			about{"report an event of a host", protocol.ReportRequest{}, protocol.ReportResponse{}, ""}},

		{"GET /v1/agent/closure/{hash}", members, h.documents.closure,
			about{"read a narinfo of the cache", nil, narinfo, ""}},
		{"GET /v1/heads/{channel}", members, h.documents.head,
			about{"read the signed head of a channel", nil, signedJSON, ""}},
		{"GET /v1/heads/{channel}/sig", members, h.documents.headSignature,
			about{"read a head's signature", nil, signature, ""}},
		{"GET /v1/heads/{channel}/proof/{host}", members, h.documents.proof,
			about{"read the proof that a head has a host's entry", nil, protocol.Proof{}, ""}},
		{"GET /v1/rollouts/{id}", members, h.documents.manifest, about{"read a signed manifest", nil, signedJSON, ""}},
		{"GET /v1/rollouts/{id}/sig", members, h.documents.manifestSignature,
			about{"read a manifest's signature", nil, signature, ""}},
		{"GET /v1/whoami", members, h.views.whoami, about{"read the caller's name", nil, protocol.Whoami{}, ""}},
	}
}

// forReaders are the views of the fleet that v1 shows to its hosts, too, and those like them.
func (h *handlers) forReaders(counted *registry) []route {
	metrics := served(counted)
	return []route{
		{"GET /v1/hosts", readers, h.views.hosts,
			about{"list what every host runs and should run", nil, protocol.HostsResponse{},
				"host channel tag state closure rollout wave order limit after"}},
		{"GET /v1/channels", readers, h.views.channels,
			about{"list the channels with how their hosts stand", nil, protocol.ChannelsResponse{}, ""}},
		{"GET /v1/channels/{name}", readers, h.views.channel,
			about{"read the release of a channel", nil, protocol.ChannelResponse{}, ""}},
		{"GET /v1/deferrals", readers, h.views.deferrals,
			about{"list channels that wait for others", nil, protocol.DeferralsResponse{}, ""}},
		{"GET /v1/host-reports", readers, h.views.hostReports,
			about{"list the newest reports", nil, protocol.HostReportsResponse{}, "limit host"}},
		{"GET /v1/rollouts", readers, h.views.rollouts,
			about{"list rollouts that are open, or all", nil, protocol.RolloutsResponse{}, "all hosts"}},
		{"GET /v1/rollouts/{id}/lifecycle", readers, h.views.lifecycle,
			about{"read how a rollout stands", nil, protocol.Lifecycle{}, ""}},
		{"GET /v1/rollouts/{id}/trace", readers, h.views.trace,
			about{"list the dispatches of a rollout", nil, protocol.Trace{}, ""}},
		{"GET /v1/rollouts/{id}/waves", readers, h.views.waves,
			about{"read how the waves of a rollout stand", nil, protocol.RolloutWaves{}, ""}},
		{"GET /metrics", readers, metrics, about{"read metrics for Prometheus", nil, exposition, ""}},
	}
}

// forOperators are the routes that say more of one host than others may know, and those
// that change something.
func (h *handlers) forOperators() []route {
	hold := protocol.HoldRequest{}
	return []route{
		{"GET /v1/hosts/{name}", operators, h.views.host,
			about{"read what is known of a host", nil, protocol.HostDetail{}, ""}},
		{"GET /v1/certificates", operators, h.views.certificates,
			about{"list certificates, the first to end first", nil, protocol.CertificatesResponse{}, "limit"}},
		{"GET /v1/hosts/{name}/explain", operators, h.views.explain,
			about{"read why a host is not updated yet", nil, protocol.Explanation{}, ""}},
		{"GET /v1/plan", operators, h.plans.plan, about{"read what would happen from now on", nil, protocol.Plan{}, ""}},
		{"POST /v1/plan", operators, h.plans.planRelease,
			about{"read what a release would do", media(protocol.TarType), protocol.Plan{}, ""}},
		{"GET /v1/events", operators, h.views.events, about{"follow the event log", nil, stream, "after rollout follow"}},
		{"GET /v1/history", operators, h.views.history,
			about{"read the event log from its end", nil, protocol.History{},
				"before limit rollout host channel kind actor"}},
		{"GET /v1/audit", operators, h.views.audit,
			about{"read what operators did, from the end", nil, protocol.Audit{}, "before limit"}},
		{"POST /v1/rollouts/{id}/pause", operators, h.acts.hold("pause"),
			about{"give no more hosts the new closure", hold, nil, ""}},
		{"POST /v1/rollouts/{id}/resume", operators, h.acts.hold("resume"), about{"go on with a rollout", hold, nil, ""}},
		{"POST /v1/rollouts/{id}/cancel", operators, h.acts.hold("cancel"),
			about{"end a rollout as it stands", hold, nil, ""}},
		{"GET /v1/revocations", operators, h.views.revocations,
			about{"list revocations with whom they concern", nil, protocol.RevocationsResponse{}, ""}},
		{"POST /v1/revocations/undo", operators, h.acts.unrevoke,
			about{"take back the local revocations of a name", protocol.UnrevokeRequest{}, protocol.UnrevokeResponse{}, ""}},
		{"POST /v1/revocations", operators, h.acts.revoke,
			about{"refuse the certificates of a name", protocol.RevokeRequest{}, nil, ""}},
		{"POST /v1/channels/{name}/freeze", operators, h.acts.freeze,
			about{"let nothing new start on a channel until a time", protocol.FreezeRequest{}, nil, ""}},
		{"POST /v1/channels/{name}/thaw", operators, h.acts.thaw, about{"end the freeze of a channel", hold, nil, ""}},
		{"POST /v1/hosts/{name}/retry", operators, h.acts.retry, about{"try a failed closure once more", hold, nil, ""}},
		{"POST /v1/poke", operators, h.acts.poke, about{"ask the source for a release now", nil, nil, ""}},
	}
}

// served is an http.Handler as the handler of a route.
func served(h http.Handler) handler {
	return func(c *call) (any, error) {
		h.ServeHTTP(c.w, c.Request)
		return written{}, nil
	}
}
