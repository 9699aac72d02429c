package cp

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/protocol"
)

// documents serves what is signed, and passes on what a cache says.
type documents struct {
	cfg      *Config
	log      zerolog.Logger
	snapshot *current
	history  *history

	fetcher, cache *http.Client
	fetches        singleflight.Group // of manifests, by id
	asked          chan struct{}      // questions to the cache that are under way
}

func newDocuments(cfg *Config, snapshot *current, past *history) *documents {
	return &documents{
		cfg: cfg, log: cfg.Log, snapshot: snapshot, history: past,
		fetcher: &http.Client{Timeout: source.FetchTimeout}, cache: &http.Client{Timeout: cacheTimeout},
		asked: make(chan struct{}, maxAsked),
	}
}

func (d *documents) head(c *call) (any, error)          { return d.aHead(c, false) }
func (d *documents) headSignature(c *call) (any, error) { return d.aHead(c, true) }

// aHead serves a channel's head to its own hosts and to operators.
func (d *documents) aHead(c *call, sig bool) (any, error) {
	ch := d.channelFor(c)
	if ch == nil || ch.Head == nil {
		return nil, notFound("no such head")
	}
	return document{ch.HeadFile, sig}, nil
}

// channelFor is the channel of the path, nil when there is none or the caller
// is a host of another.
func (d *documents) channelFor(c *call) *fleet.ChannelRelease {
	snap, name := d.snapshot.Load(), c.PathValue("channel")
	if c.caller.Role == pki.RoleAgent {
		if h := snap.rel.Fleet.Hosts[c.caller.Name]; h == nil || h.Channel != name {
			return nil
		}
	}
	return snap.rel.Channels[name]
}

func (d *documents) proof(c *call) (any, error) {
	host := c.PathValue("host")
	if c.caller.Role == pki.RoleAgent && c.caller.Name != host {
		return nil, refused(http.StatusForbidden, "not-yours", "the certificate is of another host")
	}
	ch := d.channelFor(c)
	if ch == nil {
		return nil, notFound("no such channel")
	}
	index, ok := ch.Index[host]
	if !ok {
		return nil, notFound("the channel has no such host")
	}
	path, err := ch.Tree.Proof(index)
	if err != nil {
		return nil, err
	}
	return protocol.Proof{Leaf: fleet.Leaf(ch.Manifest.HostSet[index]), Index: index, Path: path}, nil
}

var storeHash = regexp.MustCompile(`^[0-9abcdfghijklmnpqrsvwxyz]{32}$`)

const (
	cacheTimeout = 30 * time.Second
	narinfoLimit = 1 << 20 // bytes
	// maxAsked bounds the questions to the cache at once: a cache that hangs must not take
	// the connections and file descriptors of check-ins.
	maxAsked = 64
)

// closure asks the cache for a narinfo on behalf of a host.
func (d *documents) closure(c *call) (any, error) {
	hash := c.PathValue("hash")
	if d.cfg.ClosureUpstream == "" {
		return otherwise{http.StatusNotImplemented, noProxy{"closure proxy not configured", hash, "--closure-upstream"}}, nil
	}
	if !storeHash.MatchString(hash) {
		return nil, notFound("not the hash of a store path")
	}
	select {
	case d.asked <- struct{}{}:
		defer func() { <-d.asked }()
	default:
		c.w.Header().Set("Retry-After", "5")
		return nil, refused(http.StatusServiceUnavailable, "cache-busy", "too many questions to the cache are under way")
	}
	address := strings.TrimSuffix(d.cfg.ClosureUpstream, "/") + "/" + hash + ".narinfo"
	req, err := http.NewRequestWithContext(c.Context(), http.MethodGet, address, nil)
	if err != nil {
		return nil, badRequest(http.StatusBadGateway, "cache not reachable")
	}
	resp, err := d.cache.Do(req)
	if err != nil {
		d.log.Warn().Err(err).Msg("cache not reachable")
		return nil, badRequest(http.StatusBadGateway, "cache not reachable")
	}
	defer resp.Body.Close()
	c.w.Header().Set("Content-Type", "text/x-nix-narinfo")
	c.w.WriteHeader(resp.StatusCode)
	// The status is out; a body that breaks off is all that is left to tell.
	_, _ = io.Copy(c.w, io.LimitReader(resp.Body, narinfoLimit))
	return written{}, nil
}

// noProxy is v1's answer where no cache is configured.
type noProxy struct {
	Error    string `json:"error"`
	Closure  string `json:"closure"`
	Tracking string `json:"tracking"`
}
