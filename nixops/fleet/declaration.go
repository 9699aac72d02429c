package fleet

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// Declaration is a fleet as it was evaluated, before it is stamped and signed. It stays a generic document, so that
// DropUnknown can name what is not known here. That is not signed.
type Declaration struct{ doc map[string]any }

// ParseDeclaration reads a declaration, or a release that is to be signed anew, by the rules of canonical JSON.
func ParseDeclaration(raw []byte) (*Declaration, error) {
	doc, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	return &Declaration{doc}, nil
}

func parseObject(raw []byte) (map[string]any, error) {
	canonical, err := pki.Canonicalize(raw)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(canonical, &doc); err != nil {
		return nil, err
	}
	if doc == nil {
		return nil, errors.New("it is null")
	}
	return doc, nil
}

// Bytes is the canonical text of the declaration.
func (d *Declaration) Bytes() ([]byte, error) {
	text, err := pki.Marshal(d.doc)
	if err != nil {
		return nil, fmt.Errorf("encode the fleet: %w", err)
	}
	return text, nil
}

// Fleet is the declaration as far as it is known.
func (d *Declaration) Fleet() (*Fleet, error) {
	text, err := d.Bytes()
	if err != nil {
		return nil, err
	}
	return ParseFleet(text)
}

func (d *Declaration) member(name string) map[string]any {
	m, _ := d.doc[name].(map[string]any)
	return m
}

func (d *Declaration) host(name string) map[string]any {
	host, _ := d.member("hosts")[name].(map[string]any)
	return host
}

// HostNames lists the declared hosts, sorted.
func (d *Declaration) HostNames() []string { return slices.Sorted(maps.Keys(d.member("hosts"))) }

// HasHost says whether the fleet declares the host.
func (d *Declaration) HasHost(name string) bool { return d.host(name) != nil }

// SetClosure declares what a host runs: the base name of a store path. The host must be declared.
func (d *Declaration) SetClosure(host, closure string) error {
	if !ValidClosure(closure) {
		return fmt.Errorf("closure of %s: %q is not the name of a store path", host, closure)
	}
	h := d.host(host)
	if h == nil {
		return fmt.Errorf("the fleet does not declare host %s", host)
	}
	h["closureHash"] = closure
	return nil
}

// ErrPin means that a host is pinned to something that is not a full commit.
var ErrPin = errors.New("not a full commit of 40 hexadecimal digits")

// Pin reads a host's pin, nil when it has none.
func (d *Declaration) Pin(host string) (*Pin, error) {
	pin, ok := d.host(host)["pin"].(map[string]any)
	if !ok {
		return nil, nil
	}
	p := &Pin{}
	p.Commit, _ = pin["commit"].(string)
	p.Reason, _ = pin["reason"].(string)
	if !fullCommit(p.Commit) {
		return nil, fmt.Errorf("pin of %s: %.80q is %w", host, p.Commit, ErrPin)
	}
	if text, isText := pin["expiresAt"].(string); isText {
		at, err := pki.ParseTimestamp(text)
		if err != nil {
			return nil, fmt.Errorf("pin of %s: expiresAt: %w", host, err)
		}
		p.ExpiresAt = &at
	}
	return p, nil
}

// DropExpired takes out the pins that have ended by now and names their hosts, which follow their channels again.
func (d *Declaration) DropExpired(now time.Time) ([]string, error) {
	var expired []string
	for _, name := range d.HostNames() {
		pin, err := d.Pin(name)
		if err != nil {
			return nil, err
		}
		if pin != nil && pin.ExpiresAt != nil && !now.Before(pin.ExpiresAt.Time) {
			delete(d.host(name), "pin")
			expired = append(expired, name)
		}
	}
	return expired, nil
}

// Stranger is a host in a wave of a channel that is not the host's own.
type Stranger struct {
	Channel string
	Wave    int // its place, from 0
	Host    string
	Own     string // the host's channel
}

// KeepOwnHosts takes hosts of other channels out of a channel's waves and names them. v1's mkFleet resolves a wave
// over the whole fleet, and such a host would never soak there.
func (d *Declaration) KeepOwnHosts() []Stranger {
	var strangers []Stranger
	waves := d.member("waves")
	for _, channel := range slices.Sorted(maps.Keys(waves)) {
		list, _ := waves[channel].([]any)
		for i, w := range list {
			wave, _ := w.(map[string]any)
			hosts, _ := wave["hosts"].([]any)
			kept := []any{}
			for _, h := range hosts {
				name, _ := h.(string)
				if own, declared := d.host(name)["channel"].(string); declared && own != channel {
					strangers = append(strangers, Stranger{Channel: channel, Wave: i, Host: name, Own: own})
					continue
				}
				kept = append(kept, h)
			}
			if len(kept) < len(hosts) {
				wave["hosts"] = kept
			}
		}
	}
	return strangers
}

// RoundSoaks writes the minutes of each wave that declares seconds: their ceiling, for readers that know only minutes
// (additions.md §3).
func (d *Declaration) RoundSoaks() {
	for _, waves := range d.member("waves") {
		roundSoaks(waves)
	}
	for _, p := range d.member("rolloutPolicies") {
		policy, _ := p.(map[string]any)
		roundSoaks(policy["waves"])
	}
}

func roundSoaks(waves any) {
	list, _ := waves.([]any)
	for _, w := range list {
		wave, _ := w.(map[string]any)
		if seconds, ok := wave["soakSeconds"].(float64); ok {
			wave["soakMinutes"] = math.Ceil(seconds / 60)
		}
	}
}

// List is the entries of a list that belongs to a release, as they were declared. A nil List is none: the fleet does
// not keep it.
type List []any

// ParseList reads a bare list of entries.
func ParseList(raw []byte) (List, error) {
	canonical, err := pki.Canonicalize(raw)
	if err != nil {
		return nil, err
	}
	list := List{}
	if err := json.Unmarshal(canonical, &list); err != nil {
		return nil, err
	}
	if list == nil {
		return nil, errors.New("it is null")
	}
	return list, nil
}

// ListIn reads the entries of a signed list: the member name of its document.
func ListIn(doc []byte, name string) (List, error) {
	object, err := parseObject(doc)
	if err != nil {
		return nil, err
	}
	if entries, _ := object[name].([]any); entries != nil {
		return entries, nil
	}
	return List{}, nil
}

// unexpired are the bootstrap nonces that can still be used at a time, and the hosts of the others.
func (l List) unexpired(at time.Time) (kept List, pruned []string) {
	kept = List{}
	for _, entry := range l {
		e, _ := entry.(map[string]any)
		text, _ := e["expiresAt"].(string)
		if expires, err := pki.ParseTimestamp(text); err == nil && expires.Before(at) {
			host, _ := e["hostname"].(string)
			pruned = append(pruned, host)
			continue
		}
		kept = append(kept, entry)
	}
	return kept, pruned
}

// Stamp says who signs a release, when, and what it was built from.
type Stamp struct {
	SignedAt  pki.Timestamp
	Algorithm string
	CICommit  *string
}

// meta is the stamp over what a document says of itself.
func (s Stamp) meta(had any) map[string]any {
	m, _ := had.(map[string]any)
	m = maps.Clone(m)
	if m == nil {
		m = map[string]any{}
	}
	m["schemaVersion"], m["ciCommit"] = 1, nil
	m["signedAt"], m["signatureAlgorithm"] = s.SignedAt.String(), s.Algorithm
	if s.CICommit != nil {
		m["ciCommit"] = *s.CICommit
	}
	return m
}

// Stamped are the canonical bytes to sign; nil for a list that the fleet does not keep.
type Stamped struct {
	Fleet, Revocations, Nonces []byte
	Pruned                     []string // hosts of the nonces that had expired and were left out, in their order
}

// released are the channels that have a host with a closure, sorted: each gets a manifest and a head.
func (d *Declaration) released() []string {
	channels := map[string]bool{}
	for name := range d.member("hosts") {
		h := d.host(name)
		closure, _ := h["closureHash"].(string)
		if channel, _ := h["channel"].(string); closure != "" && channel != "" {
			channels[channel] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(channels))
	if sorted == nil {
		sorted = []string{}
	}
	return sorted
}

// Stamp fills in the stamp. The lists come first, since the fleet names their hashes. The declaration stays as it is.
func (d *Declaration) Stamp(s Stamp, revocations, nonces List) (*Stamped, error) {
	out := &Stamped{}
	members := map[string]any{"revocations": nil, "bootstrapNonces": nil, "heads": d.released()}
	if revocations != nil {
		doc := map[string]any{"schemaVersion": 1, "revocations": []any(revocations), "meta": s.meta(nil)}
		body, err := written(doc, ParseRevocations)
		if err != nil {
			return nil, fmt.Errorf("list of revocations: %w", err)
		}
		out.Revocations, members["revocations"] = body, pki.HashHex(body)
	}
	if nonces != nil {
		kept, pruned := nonces.unexpired(s.SignedAt.Time)
		for i, entry := range kept {
			e, _ := entry.(map[string]any)
			if nonce, is := e["nonce"].(string); is && !pki.ValidNonce(nonce) {
				return nil, fmt.Errorf("list of bootstrap nonces: entry %d: %.80q is %w", i, nonce, pki.ErrNonce)
			}
		}
		out.Pruned = pruned
		doc := map[string]any{"schemaVersion": 1, "bootstrapNonces": []any(kept), "meta": s.meta(nil)}
		body, err := written(doc, ParseNonces)
		if err != nil {
			return nil, fmt.Errorf("list of bootstrap nonces: %w", err)
		}
		out.Nonces, members["bootstrapNonces"] = body, pki.HashHex(body)
	}
	doc := maps.Clone(d.doc)
	doc["meta"], doc["members"] = s.meta(d.doc["meta"]), members
	body, err := written(doc, ParseFleet)
	if err != nil {
		return nil, fmt.Errorf("the stamped fleet: %w", err)
	}
	out.Fleet = body
	return out, nil
}
