package cp

import (
	"cmp"
	"crypto/x509"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// maxAgentCertificates is how many certificates of agents an answer has unless it is asked for more.
const maxAgentCertificates = 100

// own are the certificates that the control plane itself uses.
func (f *files) own() []protocol.CertificateView {
	var out []protocol.CertificateView
	add := func(kind string, c *x509.Certificate) {
		out = append(out, protocol.CertificateView{Kind: kind, Name: c.Subject.CommonName, NotBefore: pki.At(c.NotBefore),
			NotAfter: pki.At(c.NotAfter)})
	}
	if pair, _, _ := f.serverCert.get(); pair != nil && pair.Leaf != nil {
		add(protocol.CertificateServer, pair.Leaf)
	}
	if ca, _, _ := f.issuing.get(); ca != nil {
		add(protocol.CertificateIssuing, ca.Cert)
	}
	cas, _, _ := f.clientCAs.get()
	for _, c := range cas.certs {
		add(protocol.CertificateClientCA, c)
	}
	return out
}

// shown remembers the certificates of operators that have called since the control plane started.
type shown struct {
	mu     sync.Mutex
	byName map[string]protocol.CertificateView
}

// maxShown bounds the names that are remembered.
const maxShown = 1000

func newShown() *shown { return &shown{byName: map[string]protocol.CertificateView{}} }

func (s *shown) note(id pki.Identity, now time.Time) {
	at := pki.At(now.Truncate(time.Second))
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.byName[id.Name]; !known && len(s.byName) >= maxShown {
		return
	}
	s.byName[id.Name] = protocol.CertificateView{Kind: protocol.CertificateOperator, Name: id.Name,
		NotBefore: pki.At(id.NotBefore), NotAfter: pki.At(id.NotAfter), SeenAt: &at}
}

func (s *shown) all() []protocol.CertificateView {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]protocol.CertificateView, 0, len(s.byName))
	for _, v := range s.byName {
		out = append(out, v)
	}
	return out
}

// certificate is that of the last check-in of a host.
func (s *sighting) certificate(host string) *protocol.CertificateView {
	if s.notAfter.IsZero() {
		return nil
	}
	at := pki.At(s.at.Truncate(time.Second))
	return &protocol.CertificateView{Kind: protocol.CertificateAgent, Name: host, NotBefore: pki.At(s.notBefore),
		NotAfter: pki.At(s.notAfter), SeenAt: &at}
}

// certificates are those of the agents that have checked in.
func (l *lastSeen) certificates() []protocol.CertificateView {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]protocol.CertificateView, 0, len(l.byHost))
	for host, s := range l.byHost {
		if c := s.certificate(host); c != nil {
			out = append(out, *c)
		}
	}
	return out
}

func firstToEnd(a, b protocol.CertificateView) int {
	return cmp.Or(a.NotAfter.Compare(b.NotAfter.Time), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// certificates lists all certificates that are known, the first to end first.
func (p *views) certificates(c *call) (any, error) {
	limit := maxAgentCertificates
	if query := c.URL.Query(); query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 0 {
			return nil, refused(http.StatusBadRequest, "bad-limit", "limit is a number from 0 to %d", maxPage)
		}
		limit = min(n, maxPage)
	}
	agents := p.seen.certificates()
	slices.SortFunc(agents, firstToEnd)
	out := protocol.CertificatesResponse{Agents: len(agents)}
	out.Certificates = append(append(p.door.files.own(), p.door.operators.all()...), agents[:min(limit, len(agents))]...)
	slices.SortFunc(out.Certificates, firstToEnd)
	return out, nil
}

// certificateEnds reads when the certificates end that the control plane uses. Of two with one name the first to end
// counts.
func certificateEnds(files *files, emit func(value float64, labels ...string)) {
	ends := map[[2]string]time.Time{}
	for _, c := range files.own() {
		key := [2]string{c.Kind, c.Name}
		if end, known := ends[key]; !known || c.NotAfter.Before(end) {
			ends[key] = c.NotAfter.Time
		}
	}
	for key, end := range ends {
		emit(float64(end.Unix()), key[0], key[1])
	}
}
