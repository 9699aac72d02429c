package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Secret reads a secret anew at each use, so that a changed file counts at once.
type Secret func() (string, error)

// web is the client of all receivers behind HTTP: it follows no redirect, which could lead anywhere.
var web = func() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	transport.MaxIdleConns, transport.IdleConnTimeout = 4, 30*time.Second
	return &http.Client{Transport: transport, Timeout: deliverTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}()

// CheckURL refuses what cannot be a receiver's address. Over plain HTTP it takes this machine alone, unless open is
// set.
func CheckURL(text string, open bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("not a URL") // the error would repeat it, with what is secret in it
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return errors.New("the URL must begin with https://")
	case u.User != nil:
		return errors.New("the URL holds a name or a password; receivers do not ask for one")
	case u.Scheme == "http" && !open && !isLoopback(u.Hostname()):
		return errors.New("the URL must begin with https://: what is sent names hosts and closures")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// post sends a body and takes any answer of 2xx for a yes.
func post(ctx context.Context, to string, header http.Header, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "nixfleet")
	resp, err := web.Do(req)
	if err != nil {
		// The URL of a receiver may be a secret: *url.Error would write it into the log.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection serves again
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the receiver answers %d", resp.StatusCode)
	}
	return nil
}

// Webhook is a receiver as https://www.standardwebhooks.com describes it.
type Webhook struct {
	URL    string
	Secret Secret
}

// Name is webhook.
func (w *Webhook) Name() string { return "webhook" }

// body is what a webhook is sent. Members are added, and keep their meaning.
type body struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Data      data   `json:"data"`
}

type data struct {
	Summary   string   `json:"summary"`
	Resolved  bool     `json:"resolved"`
	Channel   string   `json:"channel,omitempty"`
	Rollout   string   `json:"rolloutId,omitempty"`
	Subject   string   `json:"subject,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Hosts     []string `json:"hosts,omitempty"`
	HostCount int      `json:"hostCount,omitempty"`
	Page      string   `json:"page"`
}

// Deliver sends one notice, signed anew at each attempt, under the same id.
func (w *Webhook) Deliver(ctx context.Context, n Notice) error {
	text, err := w.Secret()
	if err != nil {
		return err
	}
	key, err := webhookKey(text)
	if err != nil {
		return err
	}
	doc, err := json.Marshal(body{Type: n.Kind, Timestamp: n.At.Format(time.RFC3339), Data: data{
		Summary: n.Summary(), Resolved: n.Resolved, Channel: n.Channel, Rollout: n.Rollout, Subject: n.Subject,
		Reason: n.Reason, Hosts: n.Hosts, HostCount: n.Count, Page: n.page(),
	}})
	if err != nil {
		return err
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	header := http.Header{}
	header.Set("Webhook-Id", n.ID)
	header.Set("Webhook-Timestamp", at)
	header.Set("Webhook-Signature", "v1,"+webhookSignature(key, n.ID, at, doc))
	return post(ctx, w.URL, header, doc)
}

// webhookSignature is the HMAC over id, time and body.
func webhookSignature(key []byte, id, at string, doc []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, doc)
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// webhookKey reads a secret: base64 of 24 to 64 bytes, with the prefix that senders show it with or without.
func webhookKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("the webhook's secret is not base64 of 24 to 64 bytes: openssl rand -base64 32 makes one")
	}
	return key, nil
}

// Alertmanager is told what holds, in its API of version 2. It groups, silences and forwards by itself.
type Alertmanager struct {
	URL   string
	Token Secret // nil for none
}

// Name is alertmanager.
func (a *Alertmanager) Name() string { return "alertmanager" }

// alert is one of the body.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    string            `json:"startsAt"`
	EndsAt      string            `json:"endsAt"`
}

// alertNames are those of the kinds, as rules of Prometheus name alerts.
var alertNames = map[string]string{
	KindHalted: "NixfleetRolloutHalted", KindRecalled: "NixfleetRolloutRecalled",
	KindConverged: "NixfleetRolloutConverged", KindHostSilent: "NixfleetHostsSilent",
	KindCertificate: "NixfleetCertificateEnding", KindStale: "NixfleetReleaseStale", KindSource: "NixfleetSourceFailing",
	KindTest: "NixfleetTest",
}

// alertLasts is how long an alert holds that is not told again: what is over ends by itself.
const alertLasts = 5 * repeatEvery

// alertOf is a condition as an alert.
func alertOf(c Condition, now time.Time) alert {
	n := noticeOf(c, c.Hosts, c.Since, false)
	labels := map[string]string{"alertname": alertNames[c.Kind], "severity": severity(c.Kind), "job": "nixfleet"}
	for name, value := range map[string]string{"channel": c.Channel, "subject": c.Subject} {
		if value != "" {
			labels[name] = value
		}
	}
	annotations := map[string]string{"summary": n.Summary(), "page": n.page()}
	for name, value := range map[string]string{"reason": c.Reason, "rollout": c.Rollout,
		"hosts": strings.Join(n.Hosts, " ")} {
		if value != "" {
			annotations[name] = value
		}
	}
	return alert{Labels: labels, Annotations: annotations, StartsAt: c.Since.UTC().Format(time.RFC3339),
		EndsAt: now.UTC().Add(alertLasts).Format(time.RFC3339)}
}

func severity(kind string) string {
	switch kind {
	case KindConverged, KindTest:
		return "info"
	case KindHostSilent, KindCertificate:
		return "warning"
	}
	return "critical"
}

// Deliver tells of one notice. Only a test comes this way.
func (a *Alertmanager) Deliver(ctx context.Context, n Notice) error {
	return a.tell(ctx, []Condition{{Kind: n.Kind, Reason: n.Reason, Since: n.At}}, n.At)
}

// tell tells of all that holds.
func (a *Alertmanager) tell(ctx context.Context, holding []Condition, now time.Time) error {
	if len(holding) == 0 {
		return nil
	}
	alerts := make([]alert, len(holding))
	for i, c := range holding {
		alerts[i] = alertOf(c, now)
	}
	doc, err := json.Marshal(alerts)
	if err != nil {
		return err
	}
	header := http.Header{}
	if a.Token != nil {
		token, err := a.Token()
		if err != nil {
			return err
		}
		header.Set("Authorization", "Bearer "+token)
	}
	return post(ctx, strings.TrimSuffix(a.URL, "/")+"/api/v2/alerts", header, doc)
}
