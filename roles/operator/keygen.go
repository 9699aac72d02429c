package operator

import (
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name: "keygen", Usage: "make keys and certificates",
		Description: "Private halves are written 0600 and never printed; the Nix block for the public halves goes to\n" +
			"standard output.\n\n" +
			"Example:\n   nixfleet keygen all --dir secrets --suffix fleet.example.com --server cp.example.com",
		Subcommands: []*cli.Command{
			keygenAllCommand(), keygenReleaseCommand(), keygenOrgRootCommand(), keygenFleetCACommand(),
			keygenIssuingCACommand(), keygenServerCommand(), keygenOperatorCommand(), keygenCacheCommand(),
		},
	}
}

func keygenAllCommand() *cli.Command {
	return &cli.Command{
		Name: "all", Usage: "everything that a new fleet needs",
		Description: "Writes release.key, org-root.key, cache.key, the fleet root, the issuing CA, the control\n" +
			"plane's server certificate, an operator certificate and trust.json. The organisation's root key\n" +
			"belongs to operators alone: never give it to the control plane.\n\n" +
			"Example:\n   nixfleet keygen all --dir secrets --suffix fleet.example.com --server cp.example.com",
		Flags: append([]cli.Flag{dirFlag(), suffixFlag(), serverFlag(), algorithmFlag(), cacheNameFlag(), cnFlag(),
			forceFlag(), command.JSONFlag()},
			append(trustFlags(), recipientFlags("encrypt the org root key")...)...),
		Action: keygenAll,
	}
}

func keygenReleaseCommand() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "the key that signs releases, the only thing a host obeys",
		Description: "With --recipient the key is written encrypted; release opens it with --identity.\n\n" +
			"Example:\n   nixfleet keygen release --out release.key --trust-file trust.json",
		Flags: append([]cli.Flag{outFlag("release.key"), algorithmFlag(), forceFlag(), command.JSONFlag()},
			append(trustFlags(), recipientFlags("encrypt the key")...)...),
		Action: func(c *cli.Context) error {
			to, err := recipients(c)
			if err != nil {
				return err
			}
			return made(c, func(m *minted) error { return m.release(c.String("out"), c.String("algorithm"), to...) })
		},
	}
}

func keygenOrgRootCommand() *cli.Command {
	return &cli.Command{
		Name: "org-root", Usage: "the key that signs bootstrap tokens",
		Description: "With --trust-file the key that was current becomes the previous one: the grace window of a\n" +
			"rotation, in which old tokens keep working.\n\n" +
			"Example:\n   nixfleet keygen org-root --out org-root.age --recipient \"$(cat ~/.ssh/id_ed25519.pub)\" " +
			"--trust-file trust.json",
		Flags: append([]cli.Flag{outFlag("org-root.key"), forceFlag(), command.JSONFlag()},
			append(trustFlags(), recipientFlags("encrypt the key")...)...),
		Action: func(c *cli.Context) error {
			return made(c, func(m *minted) error { return m.orgRoot(c.String("out")) })
		},
	}
}

func keygenFleetCACommand() *cli.Command {
	return &cli.Command{
		Name: "fleet-ca", Usage: "the fleet root and the issuing CA of agents' certificates",
		Description: "The root's key stays with the operators; the control plane gets the issuing CA.\n\n" +
			"Example:\n   nixfleet keygen fleet-ca --dir secrets --suffix fleet.example.com",
		Flags: append([]cli.Flag{dirFlag(), suffixFlag(), forceFlag(), command.JSONFlag()}, trustFlags()...),
		Action: func(c *cli.Context) error {
			return made(c, func(m *minted) error { _, err := m.fleetCA(c.String("dir")); return err })
		},
	}
}

func keygenIssuingCACommand() *cli.Command {
	return &cli.Command{
		Name: "issuing-ca", Usage: "another issuing CA under the fleet root, before the current one expires",
		Description: "Agents renew under the new one as soon as the control plane has it. client-ca.pem keeps the " +
			"issuing CAs\n" +
			"that --trust-file names, so that certificates of the current one are accepted until they expire.\n" +
			"With --public-key only the certificate is made, for a key that stays where it is, such as in the control\n" +
			"plane's TPM: the root stays offline, and no private half travels.\n\n" +
			"Example:\n   nixfleet keygen issuing-ca --dir secrets/next --suffix fleet.example.com --root-cert " +
			"secrets/fleet-root.cert.pem \\\n" +
			"     --root-key secrets/fleet-root.key.pem --trust-file trust.json\n" +
			"   ssh root@cp.example.com cat /var/lib/tpm/issuing-ca.pub >issuing-ca.pub\n" +
			"   nixfleet keygen issuing-ca --public-key issuing-ca.pub --dir secrets/tpm --suffix fleet.example.com",
		Flags: append(append([]cli.Flag{
			dirFlag(), suffixFlag(), forceFlag(), command.JSONFlag(),
			&cli.StringFlag{Name: "public-key", Usage: "certify the P-256 public key in `FILE` (64 raw bytes or PEM), " +
				"and make no key"},
		}, trustFlags()...), append(rootFlags(), recipientFlags("encrypt the private half")...)...),
		Action: func(c *cli.Context) error {
			return made(c, func(m *minted) error { return m.issuingFromFiles(c.String("dir")) })
		},
	}
}

func keygenServerCommand() *cli.Command {
	return &cli.Command{
		Name: "server", Usage: "the control plane's server certificate",
		Description: "Example:\n   nixfleet keygen server --server cp.example.com --server 10.0.0.5 --dir secrets",
		Flags: append([]cli.Flag{dirFlag(), serverFlag(), daysFlag(), forceFlag(), command.JSONFlag()},
			append(rootFlags(), recipientFlags("encrypt the private half")...)...),
		Action: func(c *cli.Context) error {
			return made(c, func(m *minted) error { return m.serverFromFiles(c.String("dir")) })
		},
	}
}

func keygenOperatorCommand() *cli.Command {
	return &cli.Command{
		Name: "operator", Usage: "an operator's certificate (as mint-operator-cert)",
		Description: "Example:\n   nixfleet keygen operator --cn operator-jo --output-cert jo.pem --output-key jo.key",
		Flags:       operatorCertFlags(),
		Action:      mintOperatorCert,
	}
}

func keygenCacheCommand() *cli.Command {
	return &cli.Command{
		Name: "cache", Usage: "a binary cache's signing key in Nix's own form",
		Description: "Example:\n   nixfleet keygen cache --name cache.example.com-1 --out cache.key",
		Flags: append([]cli.Flag{outFlag("cache.key"), cacheNameFlag(), forceFlag(), command.JSONFlag()},
			trustFlags()...),
		Action: func(c *cli.Context) error {
			return made(c, func(m *minted) error { return m.cache(c.String("out"), c.String("name")) })
		},
	}
}

func forceFlag() cli.Flag { return &cli.BoolFlag{Name: "force", Usage: "replace files that exist"} }

func outFlag(name string) cli.Flag {
	return &cli.StringFlag{Name: "out", Value: name, Usage: "write the private half to `FILE` (0600)"}
}

func algorithmFlag() cli.Flag {
	return &cli.StringFlag{Name: "algorithm", Value: pki.AlgorithmEd25519,
		Usage: "`ALGORITHM` of the release key: ed25519 or ecdsa-p256"}
}

func dirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Value: ".", Usage: "write the files into `DIR`"}
}

func suffixFlag() cli.Flag {
	return &cli.StringFlag{Name: "suffix", EnvVars: []string{"NIXFLEET_AGENT_CN_SUFFIX"},
		Usage: "`SUFFIX` of agents' certificate names, such as fleet.example.com"}
}

func cacheNameFlag() cli.Flag {
	return &cli.StringFlag{Name: "name", Usage: "`NAME` of the cache key (default: cache.SUFFIX-1)"}
}

func serverFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "server",
		Usage: "DNS `NAME` or address of the control plane; may be given several times"}
}

func cnFlag() cli.Flag {
	return &cli.StringFlag{Name: "cn", Usage: "operator's `NAME` (default: operator-$USER@host)"}
}
