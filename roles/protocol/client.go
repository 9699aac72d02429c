package protocol

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

const (
	connectTimeout = 10 * time.Second
	requestTimeout = 30 * time.Second
	// holdMargin is added to the time a held request may take.
	holdMargin = 15 * time.Second
	// maxAnswer bounds an answer, in bytes: the views of a large fleet.
	maxAnswer = pki.MaxDocument
	// maxRefusal bounds the text of a refusal, in bytes.
	maxRefusal = 64 << 10
)

// ErrTooLarge: the answer is larger than any that is right.
var ErrTooLarge = errors.New("answer too large")

// ClientConfig is how to reach a control plane.
type ClientConfig struct {
	BaseURL string // https://host:port
	// CAPEM is the only bundle that is believed once it is given; without it the
	// system's roots are.
	CAPEM []byte
	// Certificate is asked at every handshake, so that a renewed one is used; it
	// may be nil, and may return nil while there is none.
	Certificate func() (*tls.Certificate, error)
	Timeout     time.Duration // of one plain request; default 30 s
	UserAgent   string
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client speaks protocol version 1. It follows no redirect, bounds every answer
// and every wait, and is safe for concurrent use.
type Client struct {
	base      string
	http      *http.Client
	transport *http.Transport
	timeout   time.Duration
	agent     string
}

// NewClient checks the configuration and connects to nothing yet.
func NewClient(cfg ClientConfig) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("control plane URL %q is not https://host:port", cfg.BaseURL)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if len(cfg.CAPEM) > 0 {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(cfg.CAPEM) {
			return nil, errors.New("CA bundle holds no PEM certificate")
		}
	}
	if cfg.Certificate != nil {
		// The hints of a server may name the root alone while we hold only the
		// leaf; the certificate is presented whatever they say.
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := cfg.Certificate()
			if cert == nil && err == nil {
				cert = &tls.Certificate{}
			}
			return cert, err
		}
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: connectTimeout,
		IdleConnTimeout:     10 * time.Minute,
		MaxIdleConnsPerHost: 2,
		ForceAttemptHTTP2:   false,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	return &Client{
		base: strings.TrimSuffix(cfg.BaseURL, "/"), transport: transport,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		timeout: cmp.Or(cfg.Timeout, requestTimeout),
		agent:   cmp.Or(cfg.UserAgent, "nixfleet"),
	}, nil
}

// CloseIdle drops idle connections, so that the next request presents the
// certificate of that time.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

// Error is a refusal by the control plane: the coded error that crosses HTTP.
type Error struct {
	Status     int
	Code       string // stable word, empty when the control plane gave none
	Message    string
	Hint       string        // what to do about it, empty when the control plane gave none
	RetryAfter time.Duration // zero when the answer named none
}

func (e *Error) Error() string {
	text := fmt.Sprintf("control plane answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// NotReady reports that the control plane waits for its first release, which an
// enrolling agent waits out.
func (e *Error) NotReady() bool {
	return e.Status == http.StatusServiceUnavailable && strings.Contains(e.Message, "control plane not ready")
}

// do sends one request and hands the answer's header and body on. body nil
// means no body.
func (c *Client) do(ctx context.Context, timeout time.Duration, method, path string, header http.Header, body any) (http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, header, body)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := readBounded(resp.Body, maxAnswer)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return resp.Header, answer, nil
}

// send returns an answer whose status is 2xx, or an *Error.
func (c *Client) send(ctx context.Context, method, path string, header http.Header, body any) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		doc, err := pki.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		payload = bytes.NewReader(doc)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set(HeaderProtocol, strconv.Itoa(Version))
	req.Header.Set("User-Agent", c.agent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := readBounded(resp.Body, maxRefusal)
	if err != nil {
		text = nil
	}
	return nil, refusal(resp, text)
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, ErrTooLarge
	}
	return data, nil
}

// refusalBody is the JSON of a refusal; v1 sends error and reason at most.
type refusalBody struct {
	Error  string `json:"error"`
	Reason string `json:"reason"`
	Code   string `json:"code"`
	Hint   string `json:"hint"`
}

func refusal(resp *http.Response, text []byte) *Error {
	e := &Error{Status: resp.StatusCode, Message: strings.TrimSpace(string(text))}
	if secs, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && secs > 0 {
		e.RetryAfter = time.Duration(min(secs, 24*3600)) * time.Second
	}
	var body refusalBody
	if pki.Decode(text, &body) == nil && body.Error != "" {
		e.Message, e.Code, e.Hint = body.Error, body.Code, body.Hint
		if body.Reason != "" {
			e.Message += ": " + body.Reason
		}
	}
	if len(e.Message) > 500 {
		e.Message = e.Message[:500] + " …"
	}
	return e
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	_, answer, err := c.do(ctx, c.timeout, method, path, nil, in)
	if err != nil || out == nil {
		return err
	}
	if err := pki.Decode(answer, out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// Raw is the body of a GET as it came, for --json.
func (c *Client) Raw(ctx context.Context, path string) (jsontext.Value, error) {
	_, answer, err := c.do(ctx, c.timeout, http.MethodGet, path, nil, nil)
	return answer, err
}
