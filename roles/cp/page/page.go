// Package page renders the page that people look at in a browser. It shows what the reads of
// /v1 say and nothing else, and asks for it through a Plane: the control plane answers in
// process, with the rights of the browser's certificate, and a workstation with the
// operator's client (docs/adr/0016-one-page-two-doors.md).
//
// It promises that every text is escaped in one place, that no secret is on the page, that
// nothing is loaded from elsewhere, and that what changes something asks for a reason and
// refuses requests that other sites made. It works without its script.
package page

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// Plane is whom the page asks: a *client.Client, or the control plane itself. Refusals are
// of type *client.Error.
type Plane interface {
	Whoami(ctx context.Context) (*protocol.Whoami, error)
	Channels(ctx context.Context) (*protocol.ChannelsResponse, error)
	HostsPage(ctx context.Context, q client.HostsQuery) (*protocol.HostsResponse, error)
	Host(ctx context.Context, hostname string) (*protocol.HostDetail, error)
	Rollouts(ctx context.Context, q client.RolloutsQuery) (*protocol.RolloutsResponse, error)
	Waves(ctx context.Context, rolloutID string) (*protocol.RolloutWaves, error)
	Trace(ctx context.Context, rolloutID string) (*protocol.Trace, error)
	Plan(ctx context.Context, docs map[string][]byte) (*protocol.Plan, error)
	History(ctx context.Context, q protocol.HistoryQuery) (*protocol.History, error)
	Audit(ctx context.Context, before int64, limit int) (*protocol.Audit, error)
	Certificates(ctx context.Context, limit int) (*protocol.CertificatesResponse, error)
	Events(ctx context.Context, q client.EventQuery, each func(protocol.Event) error) error
	Hold(ctx context.Context, rolloutID, action, reason string) error
	Retry(ctx context.Context, hostname, reason string) error
}

const (
	// answerTimeout bounds one page, and one line of the live stream.
	answerTimeout = 30 * time.Second
	// maxLive is how many browsers' tabs are told of events at once; more of them reload.
	maxLive = 64
)

//go:embed templates/*.html style.css live.js
var files embed.FS

// Page serves the page.
type Page struct {
	plane  Plane
	now    func() time.Time
	secret []byte // of the tokens in forms
	live   chan struct{}
	mux    *http.ServeMux
	views  *template.Template
	style  template.CSS
	script template.JS
}

// New makes the page that asks plane.
func New(plane Plane) *Page {
	p := &Page{plane: plane, now: time.Now, secret: make([]byte, 32), live: make(chan struct{}, maxLive),
		mux: http.NewServeMux()}
	rand.Read(p.secret) // never fails
	p.views = template.Must(template.New("").Funcs(p.words()).ParseFS(files, "templates/*.html"))
	style, script := must(files.ReadFile("style.css")), must(files.ReadFile("live.js"))
	p.style, p.script = template.CSS(style), template.JS(script) // ours, embedded
	for pattern, view := range map[string]view{
		"GET /{$}":                         p.overview,
		"GET /search":                      p.search,
		"GET /hosts":                       p.hosts,
		"GET /hosts/{name}":                p.host,
		"GET /hosts/{name}/retry":          p.askRetry,
		"POST /hosts/{name}/retry":         p.retry,
		"GET /rollouts":                    p.rollouts,
		"GET /rollouts/{id}":               p.rollout,
		"GET /rollouts/{id}/act/{action}":  p.askHold,
		"POST /rollouts/{id}/act/{action}": p.hold,
		"GET /releases":                    p.releases,
		"GET /releases/{commit}":           p.release,
		"GET /certificates":                p.certificates,
		"GET /events":                      p.events,
		"GET /audit":                       p.audit,
	} {
		p.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { p.show(w, r, view) })
	}
	p.mux.HandleFunc("GET /live", p.stream)
	p.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.show(w, r, func(*http.Request) (*sheet, error) {
			return nil, &client.Error{Status: http.StatusNotFound, Message: "there is no such page"}
		})
	})
	return p
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // what is embedded is there
	}
	return v
}

// view makes one page. A sheet with a place is a redirect to it.
type view func(*http.Request) (*sheet, error)

// sheet is what a template is given.
type sheet struct {
	Title string
	Name  string // of the template
	Body  any
	Place string // where to go instead
	Live  bool   // it is worth showing again when something happens

	Who    string
	Token  string
	Nonce  string
	Seq    int64 // the last event that is in it for sure
	Part   bool  // the script asks for the main part only
	Style  template.CSS
	Script template.JS
	At     time.Time
}

// ServeHTTP answers a browser. Its caller has let it in.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A recorder of a test has no deadlines.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
	p.mux.ServeHTTP(w, r)
}

// show answers with a view, or with why there is none.
func (p *Page) show(w http.ResponseWriter, r *http.Request, make view) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	status := http.StatusOK
	var s *sheet
	who, err := p.plane.Whoami(ctx)
	if err == nil {
		err = p.guard(w, r, who.CN)
	}
	// What happens while the view is made is not in it, so the browser is to be told of it: the number comes first.
	seq := int64(0)
	if err == nil && r.Method == http.MethodGet {
		seq = p.newest(ctx)
	}
	if err == nil {
		s, err = make(r)
	}
	if err != nil {
		s, status = failure(err)
	}
	if s.Place != "" {
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, s.Place, http.StatusSeeOther)
		return
	}
	if who != nil {
		s.Who = who.CN
		s.Token = p.token(who.CN)
	}
	s.Seq = seq
	s.At, s.Part = p.now(), r.Header.Get("Nixfleet-Part") == "main"
	p.write(w, s, status)
}

// newest is the number of the last event, 0 when nobody knows.
func (p *Page) newest(ctx context.Context) int64 {
	past, err := p.plane.History(ctx, protocol.HistoryQuery{Limit: 1})
	if err != nil || len(past.Events) == 0 {
		return 0
	}
	return past.Events[0].Seq
}

// problem is a page that says what is in the way.
type problem struct {
	Status     int
	Text, Hint string
}

// failure is the page for an error, and its status.
func failure(err error) (*sheet, int) {
	body := problem{Status: http.StatusBadGateway, Text: err.Error(),
		Hint: "The page shows what the control plane answers, and there was no answer."}
	var refusal *client.Error
	if errors.As(err, &refusal) {
		body = problem{refusal.Status, refusal.Message, refusal.Hint}
	}
	if body.Text == "" {
		body.Text = http.StatusText(body.Status)
	}
	return &sheet{Title: "Not shown", Name: "problem", Body: body}, body.Status
}

// write renders a sheet. This is the one place where text becomes a page: html/template
// escapes what stands in it, and PlainLines takes out what turns the direction of reading or
// hides.
func (p *Page) write(w http.ResponseWriter, s *sheet, status int) {
	s.Nonce, s.Style, s.Script = rand.Text(), p.style, p.script
	var body bytes.Buffer
	if err := p.views.ExecuteTemplate(&body, s.Name, s); err != nil {
		http.Error(w, "the page cannot be rendered", http.StatusInternalServerError)
		return
	}
	doc := []byte(command.PlainLines(body.String()))
	h := w.Header()
	protect(h)
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+s.Nonce+"'; script-src 'nonce-"+s.Nonce+
		"'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(doc)))
	w.WriteHeader(status)
	w.Write(doc)
}

// protect sets what every answer has.
func protect(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // with no-referrer, a form would be sent with the origin null
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// token is what a form of the page carries, so that only a page that this caller was shown
// can change something.
func (p *Page) token(caller string) string {
	mac := hmac.New(sha256.New, p.secret)
	mac.Write([]byte(caller))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
