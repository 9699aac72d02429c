package cp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/cp/notify"
	"nixfleet/roles/cp/source"
)

// NotifyConfig says who is told what.
type NotifyConfig struct {
	WebhookURL        string
	WebhookSecretFile string
	AlertmanagerURL   string
	AlertmanagerToken string // file
	MailServer        string
	MailPasswordFile  string
	MailFrom          string
	MailTo            []string
	On                []string // kinds; empty for all
	SilentAfter       time.Duration
}

func (c *NotifyConfig) given() bool {
	return c.WebhookURL != "" || c.AlertmanagerURL != "" || c.MailServer != ""
}

func (c *NotifyConfig) kinds() []string {
	if len(c.On) == 0 {
		return notify.Kinds
	}
	return c.On
}

// check finds what cannot work.
func (c *NotifyConfig) check() error {
	var problems []error
	add := func(flag string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("--notify-%s: %w", flag, err))
		}
	}
	if c.WebhookURL != "" {
		add("webhook-url", notify.CheckURL(c.WebhookURL, false))
	}
	if c.AlertmanagerURL != "" {
		add("alertmanager-url", notify.CheckURL(c.AlertmanagerURL, c.AlertmanagerToken == ""))
	}
	if c.MailServer != "" {
		_, err := notify.ParseServer(c.MailServer)
		add("mail-server", err)
		add("mail-from", notify.CheckAddress(c.MailFrom))
		for _, to := range c.MailTo {
			add("mail-to", notify.CheckAddress(to))
		}
	}
	for _, kind := range c.On {
		if !slices.Contains(notify.Kinds, kind) {
			add("on", fmt.Errorf("%q is not one of %s", kind, strings.Join(notify.Kinds, ", ")))
		}
	}
	return errors.Join(append(problems, unmet(
		demand{(c.WebhookURL == "") == (c.WebhookSecretFile == ""),
			"--notify-webhook-url and --notify-webhook-secret-file are given together"},
		demand{(c.MailServer == "") == (len(c.MailTo) == 0) && (c.MailServer == "") == (c.MailFrom == ""),
			"--notify-mail-server, --notify-mail-from and --notify-mail-to are given together"},
		demand{c.SilentAfter >= time.Minute || !c.given(), "--notify-silent-after must be at least 1m"},
	))...)
}

// secrets are the files that must be readable.
func (c *NotifyConfig) secrets() []string {
	return []string{c.WebhookSecretFile, c.AlertmanagerToken, c.MailPasswordFile}
}

func secretIn(path string) notify.Secret {
	if path == "" {
		return nil
	}
	return func() (string, error) { return source.Secret(path) }
}

// receivers are those that are told one notice after the other, and the Alertmanager, if there is one.
func (c *NotifyConfig) receivers() (to []notify.Receiver, alerts *notify.Alertmanager, err error) {
	if c.WebhookURL != "" {
		to = append(to, &notify.Webhook{URL: c.WebhookURL, Secret: secretIn(c.WebhookSecretFile)})
	}
	if c.MailServer != "" {
		server, err := notify.ParseServer(c.MailServer)
		if err != nil {
			return nil, nil, err
		}
		to = append(to, &notify.Mail{Server: server, Password: secretIn(c.MailPasswordFile), From: c.MailFrom, To: c.MailTo})
	}
	if c.AlertmanagerURL != "" {
		alerts = &notify.Alertmanager{URL: c.AlertmanagerURL, Token: secretIn(c.AlertmanagerToken)}
	}
	return to, alerts, nil
}

func notifyFlags() []cli.Flag {
	return []cli.Flag{
		textFlag("notify-webhook-url", "", "`URL` that is told what happens, as standardwebhooks.com describes"),
		textFlag("notify-webhook-secret-file", "", "`FILE` with the secret that signs for it, base64 or whsec_…"),
		textFlag("notify-alertmanager-url", "", "base `URL` of an Alertmanager that is told what holds"),
		textFlag("notify-alertmanager-token-file", "", "`FILE` with the bearer token for it"),
		textFlag("notify-mail-server", "", "mail server: `URL` smtps://[user@]host[:465] or smtp://[user@]host[:587]"),
		textFlag("notify-mail-password-file", "", "`FILE` with the password of the mail server's user"),
		textFlag("notify-mail-from", "", "`ADDRESS` that mails are from"),
		&cli.StringSliceFlag{Name: "notify-mail-to", Usage: "`ADDRESS` that mails go to"},
		&cli.StringSliceFlag{Name: "notify-on",
			Usage: "`KIND`s that are told: " + strings.Join(notify.Kinds, ", ") + "; all when none is given"},
		durationFlag("notify-silent-after", 15*time.Minute, "tell of a host that was not heard of for so long"),
	}
}

func notifyConfigOf(c *cli.Context) NotifyConfig {
	return NotifyConfig{
		WebhookURL: c.String("notify-webhook-url"), WebhookSecretFile: c.String("notify-webhook-secret-file"),
		AlertmanagerURL: c.String("notify-alertmanager-url"), AlertmanagerToken: c.String("notify-alertmanager-token-file"),
		MailServer: c.String("notify-mail-server"), MailPasswordFile: c.String("notify-mail-password-file"),
		MailFrom: c.String("notify-mail-from"), MailTo: c.StringSlice("notify-mail-to"),
		On: c.StringSlice("notify-on"), SilentAfter: c.Duration("notify-silent-after"),
	}
}

// notifyCommand is `nixfleet cp notify`.
func notifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "notify",
		Usage: "send a test to each receiver of notifications",
		Description: "It takes the flags of `nixfleet cp serve` that begin with --notify, sends a notice of the kind " +
			"\"test\" to each receiver once, and fails when one of them does not take it.\n\n" +
			"Example:\n   nixfleet cp notify --test --notify-webhook-url https://hooks.example.com/fleet \\\n" +
			"     --notify-webhook-secret-file /run/agenix/notify-secret",
		Flags: command.Variables(variables, append(notifyFlags(), boolFlag("test", "send a test"))...),
		Action: func(c *cli.Context) error {
			cfg := notifyConfigOf(c)
			if err := cfg.check(); err != nil {
				return failed(2, fmt.Errorf("configuration: %w", err), "nixfleet cp notify --help")
			}
			if !c.Bool("test") || !cfg.given() {
				return failed(2, errors.New("there is nothing to send: give --test and a receiver"), "nixfleet cp notify --help")
			}
			return testReceivers(c, &cfg)
		},
	}
}

// testReceivers sends the test to one receiver after the other.
func testReceivers(c *cli.Context, cfg *NotifyConfig) error {
	to, alerts, err := cfg.receivers()
	if err != nil {
		return failed(2, err, "nixfleet cp notify --help")
	}
	if alerts != nil {
		to = append(to, alerts)
	}
	var problems []error
	for _, r := range to {
		err := notify.Try(c.Context, r, time.Now())
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", r.Name(), err))
			continue
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s took the test\n", r.Name()); err != nil {
			return err
		}
	}
	if len(problems) > 0 {
		return failed(1, errors.Join(problems...), "look at the address, the secret and the receiver's own log")
	}
	return nil
}
