package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	_ "github.com/mattn/go-sqlite3"
	"github.com/rogpeppe/go-internal/testscript"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// digest is all that the control plane knows and says: every row of its database,
// the view of the fleet, the release that it keeps and the certificates it issued.
// What only tells how long ago something was is left out.
func (a *actors) digest(ts *testscript.TestScript) string {
	var out strings.Builder
	db, err := sql.Open("sqlite3", "file:"+a.path("cp/state.db")+"?mode=ro&_busy_timeout=5000")
	ts.Check(err)
	defer db.Close()
	for _, table := range a.rows(ts, db, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") {
		fmt.Fprintf(&out, "%s\n", table)
		for _, row := range a.rows(ts, db, "SELECT * FROM "+strings.Trim(table, "[]")+" ORDER BY rowid") {
			fmt.Fprintf(&out, "  %s\n", row)
		}
	}
	for _, view := range []string{"/v1/hosts", "/v1/rollouts?all=true"} {
		text, err := a.client.Raw(a.t.Context(), view)
		ts.Check(err)
		canonical, err := pki.Canonicalize(text)
		ts.Check(err)
		fmt.Fprintf(&out, "%s %s\n", view, ageless.ReplaceAll(canonical, nil))
	}
	kept, err := filepath.Glob(a.path("cp/accepted/*"))
	ts.Check(err)
	for _, file := range append(kept, a.path("cp/issuance.log")) {
		if data, err := os.ReadFile(file); err == nil {
			fmt.Fprintf(&out, "%s %s\n", filepath.Base(file), pki.HashHex(data))
		}
	}
	return out.String()
}

// changed lists the lines in which two digests differ.
func changed(before, after string) string {
	var out strings.Builder
	for _, side := range []struct{ mark, text, other string }{{"-", before, after}, {"+", after, before}} {
		for line := range strings.Lines(side.text) {
			if !strings.Contains(side.other, line) {
				out.WriteString(side.mark + line)
			}
		}
	}
	return out.String()
}

var ageless = regexp.MustCompile(`"(online|lastUptimeSecs)":[a-z0-9]+,?|"reason":\{[^}]*\},?`)

func (a *actors) rows(ts *testscript.TestScript, db *sql.DB, query string) (out []string) {
	rows, err := db.Query(query)
	ts.Check(err)
	defer rows.Close()
	columns, err := rows.Columns()
	ts.Check(err)
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		ts.Check(rows.Scan(into...))
		out = append(out, fmt.Sprint(values))
	}
	ts.Check(rows.Err())
	return out
}

// forge CERT KIND [NAME]: makes a certificate that should open nothing.
func (a *actors) forge(ts *testscript.TestScript, name string, args []string) {
	subject := ""
	if len(args) > 1 {
		subject = args[1]
	}
	now := time.Now()
	load := func(kind string) *pki.CA {
		ca, err := pki.LoadCA([]byte(a.read("keys/"+kind+".cert.pem")), []byte(a.read("keys/"+kind+".key.pem")))
		ts.Check(err)
		return ca
	}
	root := func() *pki.CA {
		ca, _, err := pki.NewFleetRoot("fleet root", now.Add(-time.Hour), 24*time.Hour)
		ts.Check(err)
		return ca
	}
	agent := func(ca *pki.CA, key *pki.PrivateKey, from time.Time, validity time.Duration) []byte {
		text, err := pki.NewCSR(key.Crypto(), subject)
		ts.Check(err)
		csr, err := pki.ParseCSR(text)
		ts.Check(err)
		cert, _, err := ca.IssueAgent(csr, subject, "e2e.test", from, validity)
		ts.Check(err)
		return cert
	}
	// redated is the same certificate of a time that has passed.
	redated := func(ca *pki.CA, text []byte) []byte {
		block, _ := pem.Decode(text)
		leaf, err := x509.ParseCertificate(block.Bytes)
		ts.Check(err)
		leaf.NotBefore, leaf.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Minute)
		leaf.ExtraExtensions = nil
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca.Cert, leaf.PublicKey, ca.Signer)
		ts.Check(err)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	operator := func(ca *pki.CA, from time.Time, validity time.Duration) ([]byte, *pki.PrivateKey) {
		key, err := pki.GenerateKey(pki.AlgorithmP256)
		ts.Check(err)
		cert, err := ca.IssueOperator(subject, key.Crypto().Public(), from, validity)
		ts.Check(err)
		return cert, key
	}
	var cert []byte
	key := a.keys[subject]
	switch args[0] {
	case "expired-host":
		cert = redated(load("issuing-ca"), agent(load("issuing-ca"), key, now, time.Hour))
	case "not-yet-host":
		cert = agent(load("issuing-ca"), key, now.Add(time.Hour), time.Hour)
	case "other-key-host": // issued by the right CA, for a key that is not the host's
		key = a.keys["rogue"]
		cert = agent(load("issuing-ca"), key, now, time.Hour)
	case "foreign-host":
		ca, _, err := root().NewIssuingCA("e2e.test", now.Add(-time.Hour), 24*time.Hour)
		ts.Check(err)
		cert = agent(ca, key, now, time.Hour)
	case "host-under-root":
		cert = agent(load("fleet-root"), key, now, time.Hour)
	case "operator": // a good one, of another name
		cert, key = operator(load("fleet-root"), now, time.Hour)
	case "expired-operator":
		cert, key = operator(load("fleet-root"), now, time.Hour)
		cert = redated(load("fleet-root"), cert)
	case "foreign-operator":
		cert, key = operator(root(), now, time.Hour)
	case "operator-under-issuing-ca":
		cert, key = operator(load("issuing-ca"), now, time.Hour)
	case "operator-under-host": // a host that plays the CA, with its certificate as intermediate
		a.mu.Lock()
		parent := a.certs["web-1"]
		a.mu.Unlock()
		leaf, err := x509.ParseCertificate(parent.Certificate[0])
		ts.Check(err)
		cert, key = operator(&pki.CA{Cert: leaf, Signer: a.keys["web-1"].Crypto()}, now, time.Hour)
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: parent.Certificate[0]})...)
	default:
		ts.Fatalf("there is no certificate of the kind %q", args[0])
	}
	text, err := key.MarshalPEM()
	ts.Check(err)
	pair, err := tls.X509KeyPair(cert, text)
	ts.Check(err)
	a.mu.Lock()
	a.certs[name] = &pair
	a.mu.Unlock()
}

// push KIND REASON: a commit by someone who may write to the forge, and in some
// kinds even holds the release key. The control plane keeps the release that it
// has, and its log says why. The commit is taken back.
func (a *actors) push(ts *testscript.TestScript, kind, reason string) {
	dir := a.path("attacker")
	git := func(args ...string) string {
		out, err := a.try("git", append([]string{"-C", dir}, args...)...)
		ts.Check(err)
		return strings.TrimSpace(out)
	}
	git("fetch", "-q", "origin")
	git("reset", "-q", "--hard", "origin/main")
	at := func(name string) string { return filepath.Join(dir, "releases", filepath.FromSlash(name)) }
	read := func(name string) []byte {
		data, err := os.ReadFile(at(name))
		ts.Check(err)
		return data
	}
	write := func(name string, data []byte) { ts.Check(os.WriteFile(at(name), data, 0o644)) }
	sign := func(name string, key *pki.PrivateKey) {
		sig, err := key.Sign(read(name))
		ts.Check(err)
		write(name+fleet.SignatureSuffix, sig)
	}
	key, err := pki.ReadPrivateKey(a.path("keys/release.key"))
	ts.Check(err)
	signedAt := func(t time.Time) {
		var doc map[string]any
		ts.Check(json.Unmarshal(read(fleet.FleetName), &doc))
		doc["meta"].(map[string]any)["signedAt"] = pki.At(t.Truncate(time.Second)).String()
		body, err := pki.Marshal(doc)
		ts.Check(err)
		write(fleet.FleetName, body)
		sign(fleet.FleetName, key)
	}
	canonical, err := pki.Canonicalize(read(fleet.HeadName("stable")))
	ts.Check(err)
	head, err := fleet.ParseHead(canonical)
	ts.Check(err)
	manifest := fleet.ManifestName(head.RolloutID)
	switch kind {
	case "altered":
		body := read(fleet.FleetName)
		forged := strings.Replace(string(body), simClosureName("web-1", 2), simClosureName("web-1", 1), 1)
		if forged == string(body) {
			ts.Fatalf("nothing to alter")
		}
		write(fleet.FleetName, []byte(forged))
	case "unsigned":
		ts.Check(os.Remove(at(fleet.FleetName + fleet.SignatureSuffix)))
	case "cut-signature":
		write(fleet.FleetName+fleet.SignatureSuffix, read(fleet.FleetName + fleet.SignatureSuffix)[:63])
	case "foreign":
		foreign, err := pki.GenerateKey(pki.AlgorithmEd25519)
		ts.Check(err)
		sign(fleet.FleetName, foreign)
	case "older": // whole and signed, only from before
		git("rm", "-q", "-r", "releases")
		git("checkout", "-q", a.older, "--", "releases")
	case "future":
		signedAt(time.Now().Add(24 * time.Hour))
	case "stale":
		signedAt(time.Now().Add(-40 * 24 * time.Hour))
	case "torn": // a fleet signed now beside manifests and heads of before
		signedAt(time.Now())
	case "older-head":
		git("checkout", "-q", a.older, "--", "releases/"+fleet.HeadName("stable"),
			"releases/"+fleet.HeadName("stable")+fleet.SignatureSuffix)
	case "other-head": // that of another channel, well signed
		for _, suffix := range []string{"", fleet.SignatureSuffix} {
			write(fleet.HeadName("stable")+suffix, read(fleet.HeadName("edge")+suffix))
		}
	case "no-head":
		ts.Check(os.Remove(at(fleet.HeadName("stable"))))
	case "other-manifest":
		canonical, err := pki.Canonicalize(read(fleet.HeadName("edge")))
		ts.Check(err)
		other, err := fleet.ParseHead(canonical)
		ts.Check(err)
		for _, suffix := range []string{"", fleet.SignatureSuffix} {
			write(manifest+suffix, read(fleet.ManifestName(other.RolloutID)+suffix))
		}
	case "altered-manifest":
		write(manifest, []byte(strings.Replace(string(read(manifest)), simClosureName("web-1", 2),
			simClosureName("web-1", 1), 1)))
		sign(manifest, key)
	case "duplicate-key":
		write(fleet.FleetName, []byte(strings.Replace(string(read(fleet.FleetName)), "{", `{"schemaVersion":1,`, 1)))
		sign(fleet.FleetName, key)
	case "not-json":
		write(fleet.FleetName, []byte("{"))
	case "symlink":
		ts.Check(os.Remove(at(fleet.FleetName)))
		ts.Check(os.Symlink(a.path("ci/releases/"+fleet.FleetName), at(fleet.FleetName)))
	case "removed":
		git("rm", "-q", "-r", "releases")
	default:
		ts.Fatalf("there is no push of the kind %q", kind)
	}
	before, log := a.digest(ts), len(a.read("cp.log"))
	git("add", "-A")
	git("commit", "-q", "-m", "chore(ci): release [skip ci]")
	git("push", "-q", "origin", "HEAD:main")
	ts.Check(a.client.Poke(a.t.Context()))
	a.await(ts, "the control plane refuses the "+kind+" release and says "+reason, func() bool {
		for line := range strings.Lines(a.read("cp.log")[log:]) {
			if strings.Contains(line, "release not accepted") {
				if !strings.Contains(line, reason) {
					ts.Fatalf("the control plane says %s", line)
				}
				return true
			}
		}
		return false
	})
	if before, after := withoutAudit(before), withoutAudit(a.digest(ts)); after != before {
		ts.Fatalf("the %s release changed the control plane:\n%s", kind, changed(before, after))
	}
	if said := a.read("cp.log")[log:]; strings.Contains(said, "snapshot refreshed") {
		ts.Fatalf("the control plane took the %s release: %s", kind, said)
	}
	taken := a.accepted(ts)
	git("revert", "--no-edit", "HEAD")
	git("push", "-q", "origin", "HEAD:main")
	ts.Check(a.client.Poke(a.t.Context()))
	a.await(ts, "the control plane has looked at what was put right", func() bool { return a.accepted(ts) != taken })
}

// accepted is the control plane's count of looks at its source that ended well.
func (a *actors) accepted(ts *testscript.TestScript) string {
	text, err := a.client.Raw(a.t.Context(), "/metrics")
	ts.Check(err)
	return string(acceptedPolls.Find(text))
}

var acceptedPolls = regexp.MustCompile(`(?m)^nixfleet_\w*polls\w*\{[^}]*"accepted"\} .*$`)

// withoutAudit leaves out the record of what operators did, or tried to do.
func withoutAudit(digest string) string {
	var out strings.Builder
	audit := false
	for line := range strings.Lines(digest) {
		if !strings.HasPrefix(line, "  ") {
			audit = line == "[audit]\n"
		}
		if !audit && !strings.HasPrefix(line, "  [audit ") {
			out.WriteString(line)
		}
	}
	return out.String()
}
