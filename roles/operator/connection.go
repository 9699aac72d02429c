package operator

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

// requestTimeout bounds each question to the control plane.
const requestTimeout = 30 * time.Second

// connectionFlags name the control plane and the operator's certificate.
func connectionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cp-url", EnvVars: []string{"NIXFLEET_CP_URL"}, Usage: "`URL` of the control plane"},
		&cli.StringFlag{Name: "ca-cert", EnvVars: []string{"NIXFLEET_CA_CERT"},
			Usage: "PEM `FILE` with the CA of the control plane"},
		&cli.StringFlag{Name: "client-cert", EnvVars: []string{"NIXFLEET_CLIENT_CERT"},
			Usage: "PEM `FILE` with the operator's certificate"},
		&cli.StringFlag{Name: "client-key", EnvVars: []string{"NIXFLEET_CLIENT_KEY"},
			Usage: "PEM `FILE` with the operator's key"},
		&cli.BoolFlag{Name: "check-config", Usage: "check the connection's configuration and exit; nothing is contacted"},
	}
}

// checkConnection finds what no question could be asked with.
func checkConnection(c *cli.Context) error {
	if _, err := connect(c); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, "configuration is good")
	return err
}

// connect makes the client that all questions go through.
func connect(c *cli.Context) (*client.Client, error) {
	var missing []string
	for _, key := range connectionKeys {
		if name := strings.ReplaceAll(key, "_", "-"); c.String(name) == "" {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) > 0 {
		return nil, &command.Error{
			Err: fmt.Errorf("no control plane: %s missing", strings.Join(missing, ", ")), Code: 1,
			Hint: "nixfleet config init --cp-url URL --ca-cert FILE --client-cert FILE --client-key FILE",
		}
	}
	ca, err := command.ReadFile(c.String("ca-cert"), command.SmallFile)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read CA certificate: %w", err),
			"--ca-cert is the fleet root's certificate, %s; nixfleet config show prints where it comes from", rootCertName)
	}
	cert, err := tls.LoadX509KeyPair(c.String("client-cert"), c.String("client-key"))
	if err != nil {
		hint := "nixfleet mint-operator-cert makes one"
		if !errors.Is(err, os.ErrNotExist) {
			hint = "certificate and key must belong together; nixfleet mint-operator-cert makes a pair"
		}
		return nil, command.Hinted(fmt.Errorf("load operator certificate: %w", err), "%s", hint)
	}
	// A handshake with it would end in an alert that says less.
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		return nil, command.Hinted(fmt.Errorf("operator certificate %s expired on %s", c.String("client-cert"),
			cert.Leaf.NotAfter.UTC().Format(time.RFC3339)),
			"nixfleet mint-operator-cert --force makes another")
	} else if now.Before(cert.Leaf.NotBefore) {
		return nil, command.Hinted(fmt.Errorf("operator certificate %s is valid from %s on", c.String("client-cert"),
			cert.Leaf.NotBefore.UTC().Format(time.RFC3339)),
			"is this machine's clock right? it says %s", now.UTC().Format(time.RFC3339))
	}
	client, err := client.New(client.Config{
		BaseURL:     c.String("cp-url"),
		CAPEM:       ca,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Timeout:     requestTimeout,
		UserAgent:   "nixfleet-operator",
	})
	return client, command.Hinted(err, "write --cp-url as https://cp.example.com:8080, and name a PEM file with "+
		"--ca-cert; nixfleet config show prints both")
}

// explained gives an error of the control plane its meaning for an operator.
func explained(err error, doing string) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("%s: %w", doing, err)
	var answer *client.Error
	if !errors.As(err, &answer) {
		if errors.Is(err, context.Canceled) {
			return wrapped
		}
		return command.Hinted(wrapped, "%s", cmp.Or(distrust(err),
			"is the control plane up? nixfleet config show prints where this went"))
	}
	hint := answer.Hint
	switch {
	case hint != "":
	case answer.Status == 401:
		hint = "the certificate is not accepted: expired, revoked, or not from the fleet root; nixfleet mint-operator-cert"
	case answer.Status == 403:
		hint = "this needs an operator's certificate: one made by nixfleet mint-operator-cert"
	case answer.Status == 404 && answer.Code == "":
		hint = "there is no such name (nixfleet status, nixfleet rollout list --all), or the control plane speaks " +
			"protocol v1 and does not have this endpoint"
	case answer.Status == 404:
		hint = "nixfleet status lists the hosts, nixfleet rollout list --all the rollouts"
	case answer.Status == 409:
		hint = "nixfleet rollout list --all shows how each rollout stands"
	case answer.Status == 503:
		hint = "the control plane has not verified a release yet; see its log for `snapshot refreshed`"
	}
	return command.Hinted(wrapped, "%s", hint)
}

// distrust is what to do about a handshake that failed because one side does not
// accept the other's certificate; empty when that is not why. Asking again does
// not help.
func distrust(err error) string {
	var verification *tls.CertificateVerificationError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert *net.OpError
	switch {
	case errors.As(err, &name):
		return "--cp-url must use a name or address of the control plane's certificate; nixfleet keygen server --server " +
			"NAME makes one with another"
	case errors.As(err, &unknown):
		return "--ca-cert is not what signed the control plane's certificate: it must be the fleet root's certificate, " +
			rootCertName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the control plane's certificate has expired, or this machine's clock is wrong; nixfleet keygen server " +
			"--force makes another"
	case errors.As(err, &verification):
		return "the control plane's certificate cannot be used as a server certificate; make a new one with nixfleet " +
			"keygen server"
	case errors.As(err, &alert) && alert.Op == "remote error": // how crypto/tls names an alert of the other side
		return "the control plane does not accept the operator's certificate: expired, or not from its --client-ca; " +
			"nixfleet mint-operator-cert makes one under the fleet root"
	}
	return ""
}
