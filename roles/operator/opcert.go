package operator

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

const (
	rootCertName = "fleet-root.cert.pem"
	rootKeyName  = "fleet-root.key.pem"

	nameRoot = "name the fleet root with --root-cert and --root-key, or make one: " +
		"nixfleet keygen fleet-ca --suffix fleet.example.com"
)

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func rootFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root-cert", EnvVars: []string{"NIXFLEET_OPERATOR_FLEET_ROOT_CERT_FILE"},
			Usage: "certificate `FILE` of the fleet root (default: " + rootCertName + " beside the configuration file)"},
		&cli.StringFlag{Name: "root-key", EnvVars: []string{"NIXFLEET_OPERATOR_FLEET_ROOT_KEY_FILE"},
			Usage: "key `FILE` of the fleet root (default: " + rootKeyName + " beside the configuration file)"},
		&cli.StringFlag{Name: "identity", Usage: "age identity or ssh private key `FILE` that opens an encrypted root key"},
	}
}

func operatorCertFlags() []cli.Flag {
	return append(rootFlags(),
		&cli.StringFlag{Name: "cn", Usage: "common `NAME` (default: operator-$USER@host)"},
		&cli.StringFlag{Name: "output-cert", Usage: "write the certificate to `FILE` (default: operator.pem beside the " +
			"configuration file)"},
		&cli.StringFlag{Name: "output-key", Usage: "write the key to `FILE` (default: operator.key beside the " +
			"configuration file)"},
		&cli.StringSliceFlag{Name: "scope-channel", Usage: "limit the certificate to channels that match `GLOB`"},
		&cli.StringSliceFlag{Name: "scope-verb",
			Usage: "limit the certificate to a `VERB`: " + strings.Join(pki.Verbs, ", ")},
		daysFlag(),
		&cli.BoolFlag{Name: "force", Usage: "replace files that exist"},
	)
}

// scopeOf is what the flags limit a certificate to, nil for everything.
func scopeOf(c *cli.Context) *pki.Scope {
	s := &pki.Scope{Channels: c.StringSlice("scope-channel"), Verbs: c.StringSlice("scope-verb")}
	if len(s.Channels)+len(s.Verbs) == 0 {
		return nil
	}
	return s
}

func mintOperatorCertCommand() *cli.Command {
	return &cli.Command{
		Name: "mint-operator-cert", Usage: "make an operator's certificate under the fleet root",
		Description: "Writes the certificate (0644) and its P-256 key (0600); the summary goes to standard error.\n\n" +
			"Example:\n   nixfleet mint-operator-cert --root-cert fleet-root.cert.pem --root-key fleet-root.key.pem --cn " +
			"operator-jo",
		Flags:  operatorCertFlags(),
		Action: mintOperatorCert,
	}
}

// beside is the named file, or the default one in the directory of the
// configuration file.
func beside(c *cli.Context, flag, name string) (string, error) {
	if v := c.String(flag); v != "" {
		return v, nil
	}
	path, err := configPath(c)
	return filepath.Join(filepath.Dir(path), name), err
}

func loadRoot(c *cli.Context) (*pki.CA, error) {
	certPath, err := beside(c, "root-cert", rootCertName)
	if err != nil {
		return nil, err
	}
	keyPath, err := beside(c, "root-key", rootKeyName)
	if err != nil {
		return nil, err
	}
	key, err := newKeyring(c.String("identity")).signingKey(keyPath)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = command.Hinted(err, "%s", nameRoot)
		}
		return nil, err
	}
	return caFrom(certPath, key)
}

// caFrom joins a CA's certificate and key, which must be P-256 as v1's are.
func caFrom(certPath string, key *pki.PrivateKey) (*pki.CA, error) {
	cert, err := command.ReadFile(certPath, command.SmallFile)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read fleet root: %w", err), "%s", nameRoot)
	}
	text, err := key.MarshalPEM()
	if err != nil {
		return nil, fmt.Errorf("encode fleet root key: %w", err)
	}
	root, err := pki.LoadCA(cert, text)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("load fleet root %s: %w", certPath, err),
			"--root-cert and --root-key are the two halves of the fleet root, %s and %s", rootCertName, rootKeyName)
	}
	if public, ok := root.Signer.Public().(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		return nil, command.Hinted(fmt.Errorf("the fleet root's key is not P-256"),
			"make a fleet root: nixfleet keygen fleet-ca --suffix fleet.example.com")
	}
	return root, nil
}

func mintOperatorCert(c *cli.Context) error {
	certPath, err := beside(c, "output-cert", "operator.pem")
	if err != nil {
		return err
	}
	keyPath, err := beside(c, "output-key", "operator.key")
	if err != nil {
		return err
	}
	validity, err := daysOf(c)
	if err != nil {
		return err
	}
	root, err := loadRoot(c)
	if err != nil {
		return err
	}
	m := &minted{c: c, now: time.Now()}
	if err := m.operator(root, c.String("cn"), certPath, keyPath, validity); err != nil {
		return err
	}
	if err := m.flush(); err != nil {
		return err
	}
	for _, f := range m.summary.Files {
		progress(c, "wrote %s", f)
	}
	progress(c, "valid until %s", pki.At(m.now.Add(validity).Truncate(time.Second)))
	return nil
}

// operator makes an operator's key and certificate, the key first: a
// certificate without its key would be of no use.
func (m *minted) operator(root *pki.CA, cn, certPath, keyPath string, validity time.Duration) error {
	if cn == "" {
		host, err := os.Hostname()
		if err != nil {
			return command.Hinted(fmt.Errorf("find the name of this machine: %w", err), "give --cn")
		}
		cn = "operator-" + cmp.Or(os.Getenv("USER"), "unknown") + "@" + host
	}
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	if err != nil {
		return err
	}
	cert, err := root.IssueScopedOperator(cn, scopeOf(m.c), key.Crypto().Public(), m.now, validity)
	if err != nil {
		return fmt.Errorf("issue operator certificate: %w", err)
	}
	if err := m.writeKey(keyPath, key); err != nil {
		return err
	}
	m.write(certPath, cert, 0o644)
	progress(m.c, "operator %s", cn)
	return nil
}
