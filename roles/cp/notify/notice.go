// Package notify tells people outside of the fleet what happens in it: a webhook, an Alertmanager, a mail server.
//
// It promises that a notice is delivered at least once while the receiver answers within three days, that a restart
// loses none, and that what was told is not told again. It refuses to follow redirects and to send a secret in the
// clear. What it sends is a copy: nothing in the fleet waits for a receiver.
package notify

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kinds of notices. They are the `type` of a webhook's body.
const (
	KindHalted      = "rollout.halted"
	KindRecalled    = "rollout.recalled"
	KindConverged   = "rollout.converged"
	KindHostSilent  = "host.silent"
	KindCertificate = "certificate.ending"
	KindStale       = "release.stale"
	KindSource      = "source.failing"
	KindTest        = "test"
)

// Kinds are all kinds that the state of a fleet gives rise to.
var Kinds = []string{KindHalted, KindRecalled, KindConverged, KindHostSilent, KindCertificate, KindStale, KindSource}

// Condition is something that holds now and that people want to know of.
type Condition struct {
	Kind    string `json:"kind"`
	Channel string `json:"channel,omitempty"`
	// Subject is what it is about within its kind: an intent, the kind and name of a certificate.
	Subject string `json:"subject,omitempty"`
	Rollout string `json:"rollout,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// Hosts are those that it holds for, sorted.
	Hosts []string `json:"hosts,omitempty"`
	// Since is when it was seen first.
	Since time.Time `json:"since"`
}

// key tells conditions apart. A channel converges again and again: the one before is over then.
func (c *Condition) key() string {
	if c.Kind == KindConverged {
		return c.Kind + "/" + c.Channel
	}
	return c.Kind + "/" + c.Channel + "/" + c.Subject
}

// mostHosts bounds the hosts that a notice names.
const mostHosts = 20

// Notice is something that people are told.
type Notice struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"`
	At       time.Time `json:"at"`
	Resolved bool      `json:"resolved,omitempty"`
	Channel  string    `json:"channel,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Rollout  string    `json:"rollout,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Hosts    []string  `json:"hosts,omitempty"` // the first of them
	Count    int       `json:"count,omitempty"` // of all of them
}

// noticeOf tells that a condition holds for hosts, or does not any more.
func noticeOf(c Condition, hosts []string, at time.Time, resolved bool) Notice {
	n := Notice{
		Kind: c.Kind, At: at.UTC().Truncate(time.Second), Resolved: resolved, Channel: c.Channel, Subject: c.Subject,
		Rollout: c.Rollout, Reason: c.Reason, Count: len(hosts), Hosts: slices.Clone(hosts[:min(len(hosts), mostHosts)]),
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%t\x00%s", c.key(), n.At.Format(time.RFC3339), resolved,
		strings.Join(hosts, "\x00")))
	n.ID = "msg_" + hex.EncodeToString(sum[:12])
	return n
}

// Test is a notice that somebody asked for.
func Test(at time.Time) Notice {
	return noticeOf(Condition{Kind: KindTest, Reason: "nixfleet cp notify was asked to send it"}, nil, at, false)
}

// Summary is the notice in one line.
func (n *Notice) Summary() string {
	text := n.what()
	if n.Channel != "" {
		text = n.Channel + ": " + text
	}
	if n.Resolved {
		return "over: " + text
	}
	return text
}

func (n *Notice) what() string {
	switch n.Kind {
	case KindHalted:
		return "rollout halted"
	case KindRecalled:
		return "rollout recalled"
	case KindConverged:
		return "rollout converged"
	case KindHostSilent:
		return counted(n.Count, "host is silent", "hosts are silent")
	case KindCertificate:
		if n.Count > 0 {
			return counted(n.Count, "host's certificate ends and is not renewed",
				"hosts' certificates end and are not renewed")
		}
		return "certificate ends: " + n.Subject
	case KindStale:
		return "release is older than hosts accept"
	case KindSource:
		return "source gives no release"
	}
	return "this is a test"
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// page is the document of what to do.
func (n *Notice) page() string {
	if n.Kind == KindTest {
		return "docs/notifications.md"
	}
	return "docs/alerts/" + strings.ReplaceAll(n.Kind, ".", "-") + ".md"
}
