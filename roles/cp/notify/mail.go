package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"net/url"
	"strings"
	"time"
)

// Mail is a receiver behind a mail server.
type Mail struct {
	Server   *url.URL // smtp://[user@]host[:587] with STARTTLS, or smtps://[user@]host[:465]
	Password Secret   // for the user of Server
	From     string
	To       []string

	roots *tls.Config // replaces the machine's roots in tests
}

// Name is mail.
func (m *Mail) Name() string { return "mail" }

// ParseServer reads the address of a mail server.
func ParseServer(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "smtp" && u.Scheme != "smtps", u.Hostname() == "", strings.Trim(u.Path, "/") != "":
		return nil, errors.New("the mail server is smtp://[user@]host[:port] or smtps://[user@]host[:port]")
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("the password of the mail server belongs in a file")
	}
	return u, nil
}

// CheckAddress refuses what is not a mail address alone.
func CheckAddress(text string) error {
	a, err := mail.ParseAddress(text)
	if err != nil || a.Address != text {
		return fmt.Errorf("%q is not a mail address", text)
	}
	return nil
}

// Deliver sends one mail to all addresses.
func (m *Mail) Deliver(ctx context.Context, n Notice) error {
	client, err := m.dial(ctx)
	if err != nil {
		return fmt.Errorf("mail server: %w", err)
	}
	defer client.Close()
	if err := m.send(client, m.message(&n)); err != nil {
		return fmt.Errorf("mail server: %w", err)
	}
	return nil
}

// dial connects, encrypted unless the server is on this machine.
func (m *Mail) dial(ctx context.Context) (*smtp.Client, error) {
	host := m.Server.Hostname()
	port := cmp.Or(m.Server.Port(), map[string]string{"smtp": "587", "smtps": "465"}[m.Server.Scheme])
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(deliverTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if m.roots != nil {
		config = m.roots.Clone()
	}
	config.ServerName = host
	if m.Server.Scheme == "smtps" {
		conn = tls.Client(conn, config)
	}
	client, err := smtp.NewClient(conn, host)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if m.Server.Scheme == "smtp" && !isLoopback(host) {
		if err := client.StartTLS(config); err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	return client, nil
}

func (m *Mail) send(client *smtp.Client, message []byte) error {
	if user := m.Server.User.Username(); user != "" {
		if m.Password == nil {
			return errors.New("its user has no password file")
		}
		password, err := m.Password()
		if err != nil {
			return err
		}
		if err := client.Auth(smtp.PlainAuth("", user, password, m.Server.Hostname())); err != nil {
			return err
		}
	}
	if err := client.Mail(m.From); err != nil {
		return err
	}
	for _, to := range m.To {
		if err := client.Rcpt(to); err != nil {
			return err
		}
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(message); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_ = client.Quit() // the mail was taken already
	return nil
}

// message is the mail: what hosts and operators chose is encoded, so that it begins no header of its own.
func (m *Mail) message(n *Notice) []byte {
	var out bytes.Buffer
	_, domain, _ := strings.Cut(m.From, "@")
	header := func(name, value string) { fmt.Fprintf(&out, "%s: %s\r\n", name, value) }
	header("From", m.From)
	header("To", strings.Join(m.To, ", "))
	header("Subject", mime.QEncoding.Encode("utf-8", "[nixfleet] "+n.Summary()))
	header("Date", n.At.Format(time.RFC1123Z))
	header("Message-ID", "<"+n.ID+"@"+domain+">")
	header("Auto-Submitted", "auto-generated")
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	out.WriteString("\r\n")
	text := quotedprintable.NewWriter(&out)
	for _, line := range [][2]string{{"", n.Summary()}, {"reason: ", n.Reason}, {"rollout: ", n.Rollout},
		{"hosts: ", strings.Join(n.Hosts, " ")}, {"since: ", n.At.Format(time.RFC3339)},
		{"what to do: ", n.page()}} {
		if line[1] != "" {
			fmt.Fprintf(text, "%s%s\n", line[0], line[1])
		}
	}
	text.Close()
	return out.Bytes()
}
