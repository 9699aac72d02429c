package cp

import (
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// BenchmarkPage is the time of each page of a fleet of 10,000 hosts in a rollout, over mTLS, beside
// that of the whole list of hosts as v1 asks for it.
func BenchmarkPage(b *testing.B) {
	hosts := hostNames(10_000)
	e := newEstate(b, hosts...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	p := e.serve(func(c *Config) { c.PageListener, c.Log = listener, c.Log.Level(zerolog.Disabled) })
	p.checkin(p.agent(hosts[0]), e.state(hosts[0], closureOf(hosts[0], 0)), 0)
	site, browser := "https://"+listener.Addr().String(), p.web(p.operatorCert("operator-jo"))
	for _, view := range []struct{ name, place string }{
		{"list-of-v1", p.url + "/v1/hosts"}, {"overview", site + "/"}, {"hosts", site + "/hosts"},
		{"rollout", site + "/rollouts/" + e.rolloutID()}, {"host", site + "/hosts/" + hosts[5000]},
		{"search", site + "/search?q=" + hosts[7000]},
	} {
		b.Run(view.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				resp, err := browser.Get(view.place)
				if err != nil || resp.StatusCode != http.StatusOK {
					b.Fatalf("%v %v", resp, err)
				}
				resp.Body.Close()
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
		})
	}
}
