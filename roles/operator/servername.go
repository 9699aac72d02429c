package operator

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
)

// serverNames reads the names and addresses that the control plane's certificate is to have. A certificate for a URL,
// or for a name with a port, would serve no agent, and nobody would see why.
func serverNames(given []string) ([]string, error) {
	if len(given) == 0 {
		return nil, command.Usage("--server cp.example.com",
			"--server is missing: the DNS name or address of the control plane that agents connect to")
	}
	names := make([]string, len(given))
	for i, text := range given {
		name := strings.ToLower(strings.TrimSuffix(text, "."))
		if _, err := netip.ParseAddr(name); err != nil && !fleet.ValidHostName(strings.TrimPrefix(name, "*.")) ||
			strings.Contains(name, "%") {
			return nil, command.Usage("--server "+hostIn(text), "--server %q is not a DNS name or address, which a "+
				"certificate is made for: it has no scheme, port, path or brackets", text)
		}
		names[i] = name
	}
	return names, nil
}

// hostIn is the name or address in a URL or in a name with a port, to be suggested.
func hostIn(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		text = u.Host
	}
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	text = strings.Trim(text, "[]")
	if net.ParseIP(text) == nil && !fleet.ValidHostName(text) {
		return "cp.example.com"
	}
	return text
}
