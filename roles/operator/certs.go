package operator

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// certificateNames are the kinds for people, each with what makes another one.
var certificateNames = map[string]struct{ name, renew string }{
	protocol.CertificateServer:   {"server of the control plane", "nixfleet keygen server --help"},
	protocol.CertificateIssuing:  {"issuing CA", "nixfleet keygen issuing-ca --help"},
	protocol.CertificateClientCA: {"client CA", "nixfleet keygen issuing-ca --help"},
	protocol.CertificateOperator: {"operator", "nixfleet mint-operator-cert --help"},
	protocol.CertificateAgent:    {"agent", "nixfleet status shows whether it is heard of; an agent renews by itself"},
}

func certsCommand() *cli.Command {
	return &cli.Command{
		Name: "certs", Usage: "when certificates end",
		Description: "Lists what the control plane uses and what was shown to it since it started, the first to end\n" +
			"first. Agents renew by themselves at half of their certificate's life; the others are renewed by people:\n" +
			"docs/rotation.md. With --fail-within the exit code is 3 when one of those ends within that time.\n\n" +
			"Example:\n   nixfleet certs\n   nixfleet certs --fail-within 720h",
		Flags: append(connectionFlags(), command.JSONFlag(), command.NoColourFlag(),
			&cli.IntFlag{Name: "agents", Value: 20, Usage: "show at most `NUMBER` certificates of agents, the first to end"},
			&cli.DurationFlag{Name: "fail-within", Usage: "exit with 3 when a certificate ends within this `TIME`"}),
		Action: certs,
	}
}

func certs(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	var body jsontext.Value
	answer, err := plane.Keeping(&body).Certificates(c.Context, c.Int("agents"))
	if err != nil {
		return explained(err, "ask for the certificates")
	}
	now := time.Now()
	if c.Bool("json") {
		err = command.Text(c, body)
	} else {
		err = command.Table(c.App.Writer, certificateRows(answer, now, command.ColoursOf(c)))
	}
	if err != nil || c.Duration("fail-within") <= 0 {
		return err
	}
	for _, cert := range answer.Certificates {
		if left := cert.NotAfter.Sub(now); left < c.Duration("fail-within") {
			return command.Coded(exitFailed, command.Hinted(fmt.Errorf("the certificate of %s %s ends in %s",
				certificateNames[cert.Kind].name, command.Plain(cert.Name), command.Age(left)), "%s",
				certificateNames[cert.Kind].renew))
		}
	}
	return nil
}

func certificateRows(answer *protocol.CertificatesResponse, now time.Time, p command.Palette) [][]string {
	rows := [][]string{{"ENDS", "IN", "CERTIFICATE", "NAME", "LAST SEEN"}}
	for _, cert := range answer.Certificates {
		left, colour := cert.NotAfter.Sub(now), command.Green
		in := command.Age(left)
		switch {
		case left <= 0:
			in, colour = "ended", command.Red
		case left < protocol.CertificateEndsSoon && cert.Kind != protocol.CertificateAgent:
			colour = command.Red
		}
		seen := "in use"
		if cert.SeenAt != nil {
			seen = command.Age(now.Sub(cert.SeenAt.Time)) + " ago"
		}
		name := certificateNames[cert.Kind].name
		if name == "" {
			name = cert.Kind
		}
		rows = append(rows, []string{cert.NotAfter.Format(time.DateOnly), p.Paint(colour, in), command.Plain(name),
			command.Plain(cert.Name), seen})
	}
	return rows
}

// warnOfCertificates says on stderr which certificates that people have to renew end within 30 days. A control plane
// that cannot be asked has nothing to warn of.
func warnOfCertificates(c *cli.Context, plane *client.Client) {
	answer, err := plane.Certificates(c.Context, 0)
	if err != nil {
		return
	}
	now := time.Now()
	for _, cert := range answer.Certificates {
		if left := cert.NotAfter.Sub(now); left < protocol.CertificateEndsSoon {
			progress(c, "warning: the certificate of the %s, %s, ends in %s: nixfleet certs",
				certificateNames[cert.Kind].name, command.Plain(cert.Name), command.Age(left))
		}
	}
}
