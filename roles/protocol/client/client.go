package client

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
	"nixfleet/roles/protocol"
)

const (
	connectTimeout = 10 * time.Second
	requestTimeout = 30 * time.Second
	// holdMargin is added to the time a held request may take.
	holdMargin = 15 * time.Second
	// maxDocument bounds a manifest and the views of a large fleet, in bytes.
	maxDocument = pki.MaxDocument
	// maxAnswer bounds every other answer, in bytes, so that a hostile control
	// plane cannot fill the memory of its hosts.
	maxAnswer = 1 << 20
	// maxHeader bounds the header of an answer, in bytes.
	maxHeader = 64 << 10
)

// ErrTooLarge means that the answer is larger than any that is right.
var ErrTooLarge = errors.New("answer too large")

// Config is how to reach a control plane.
type Config struct {
	BaseURL string // https://host:port
	// CAPEM is the only bundle that is believed once it is given; without it the
	// system's roots are.
	CAPEM []byte
	// Certificate is asked at every handshake, so that a renewed one is used; it
	// may be nil, and may return nil while there is none.
	Certificate func() (*tls.Certificate, error)
	// Now is the time at which certificates must be valid; nil is the clock's.
	Now       func() time.Time
	Timeout   time.Duration // of one plain request; default 30 s
	UserAgent string
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client speaks protocol version 1 over HTTP/1.1 on kept-alive connections. It
// follows no redirect, bounds every answer and every wait, and is safe for
// concurrent use.
type Client struct {
	base      string
	http      *http.Client
	transport *http.Transport
	timeout   time.Duration
	agent     string
	kept      *jsontext.Value // where decoded answers are kept as they came; may be nil
}

// CheckURL says what is wrong with the URL of a control plane.
func CheckURL(text string) error {
	base, err := url.Parse(text)
	if err != nil || base.Scheme != "https" || base.Host == "" ||
		base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return fmt.Errorf("control plane URL %q is not https://host:port", text)
	}
	return nil
}

// New checks the configuration and connects to nothing yet.
func New(cfg Config) (*Client, error) {
	if err := CheckURL(cfg.BaseURL); err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, Time: cfg.Now}
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
		dial = new(net.Dialer).DialContext
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return dial(ctx, network, addr)
		},
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    connectTimeout,
		IdleConnTimeout:        10 * time.Minute,
		MaxIdleConnsPerHost:    2,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // what is bounded and hashed is what came
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
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

// Keeping is the same client, which puts the body of each answer that it has decoded
// into body, as it came: what a newer control plane says of itself is in there too.
// It is for one caller at a time.
func (c *Client) Keeping(body *jsontext.Value) *Client {
	keeping := *c
	keeping.kept = body
	return &keeping
}

// request is one call of the API.
type request struct {
	method, path string
	header       http.Header   // besides those that every request has
	body         any           // nil: none
	raw          []byte        // a body that is not JSON; its Content-Type is in header
	timeout      time.Duration // zero: the client's
	limit        int64         // of the answer, in bytes; zero: maxAnswer
}

func (r request) String() string { return r.method + " " + r.path }

// do sends one request and hands the answer's header and body on.
func (c *Client) do(ctx context.Context, r request) (http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(r.timeout, c.timeout))
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, nil, bounded(err)
	}
	defer resp.Body.Close()
	answer, err := readBounded(resp.Body, cmp.Or(r.limit, maxAnswer))
	if err != nil {
		return nil, nil, bounded(fmt.Errorf("%s: %w", r, err))
	}
	return resp.Header, answer, nil
}

// send returns an answer whose status is 2xx, or an *Error.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	var payload io.Reader
	if r.body != nil {
		doc, err := pki.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
		payload = bytes.NewReader(doc)
	}
	if r.raw != nil {
		payload = bytes.NewReader(r.raw)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.base+r.path, payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set(protocol.HeaderProtocol, strconv.Itoa(protocol.Version))
	req.Header.Set("User-Agent", c.agent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json") // so that refusals say why
	}
	if r.body != nil {
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
	return nil, refusal(resp)
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

// ask decodes the answer to a request.
func ask[T any](ctx context.Context, c *Client, r request) (*T, error) {
	_, answer, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := answerOf[T](r, answer)
	if err == nil && c.kept != nil {
		*c.kept = answer
	}
	return out, err
}

func answerOf[T any](r request, answer []byte) (*T, error) {
	out := new(T)
	if err := protocol.DecodeKnown(answer, out); err != nil {
		return nil, bounded(fmt.Errorf("%s: answer: %w", r, err))
	}
	return out, nil
}

// tell sends a body and wants no answer but success.
func (c *Client) tell(ctx context.Context, path string, body any) error {
	_, _, err := c.do(ctx, request{method: http.MethodPost, path: path, body: body})
	return err
}
