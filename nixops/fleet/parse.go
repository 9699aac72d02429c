package fleet

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// Metadata is what pki.VerifyArtifact asks for.
func (f *Fleet) Metadata() pki.Metadata {
	return pki.Metadata{SchemaVersion: f.SchemaVersion, SignedAt: f.Meta.SignedAt}
}

// Metadata is what pki.VerifyArtifact asks for.
func (m *Manifest) Metadata() pki.Metadata {
	return pki.Metadata{SchemaVersion: m.SchemaVersion, SignedAt: m.Meta.SignedAt}
}

// Metadata is what pki.VerifyArtifact asks for.
func (h *Head) Metadata() pki.Metadata {
	return pki.Metadata{SchemaVersion: h.SchemaVersion, SignedAt: h.Meta.SignedAt}
}

// Metadata is what pki.VerifyArtifact asks for.
func (r *Revocations) Metadata() pki.Metadata {
	return pki.Metadata{SchemaVersion: r.SchemaVersion, SignedAt: r.Meta.SignedAt}
}

// Metadata is what pki.VerifyArtifact asks for.
func (n *BootstrapNonces) Metadata() pki.Metadata {
	return pki.Metadata{SchemaVersion: n.SchemaVersion, SignedAt: n.Meta.SignedAt}
}

// marks are the members that make a signed document one of its kind. At the top level they exclude one another.
var marks = map[string]string{
	KindFleet: "hosts", KindManifest: "hostSet", KindHead: "hostSetRoot",
	KindRevocations: "revocations", KindNonces: "bootstrapNonces",
}

func oneKind(kind string) (string, []string) {
	var foreign []string
	for other, mark := range marks {
		if other != kind {
			foreign = append(foreign, mark)
		}
	}
	return kind, foreign
}

// DocumentKind makes pki.Decode refuse what is another kind of document as well.
func (Fleet) DocumentKind() (string, []string) { return oneKind(KindFleet) }

// DocumentKind makes pki.Decode refuse what is another kind of document as well.
func (Manifest) DocumentKind() (string, []string) { return oneKind(KindManifest) }

// DocumentKind makes pki.Decode refuse what is another kind of document as well.
func (Head) DocumentKind() (string, []string) { return oneKind(KindHead) }

// DocumentKind makes pki.Decode refuse what is another kind of document as well.
func (Revocations) DocumentKind() (string, []string) { return oneKind(KindRevocations) }

// DocumentKind makes pki.Decode refuse what is another kind of document as well.
func (BootstrapNonces) DocumentKind() (string, []string) { return oneKind(KindNonces) }

func parse[T any](what string, doc []byte) (*T, error) {
	v := new(T)
	if err := pki.Decode(doc, v); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if jsontext.Value(doc).Kind() != '{' {
		return nil, fmt.Errorf("%s: %w: not an object", what, pki.ErrShape)
	}
	return v, nil
}

// ParseFleet, ParseManifest, ParseHead, ParseRevocations and ParseNonces read
// the canonical text of an artifact. They check its shape, not its signature;
// what does not have it is pki.ErrShape.
func ParseFleet(doc []byte) (*Fleet, error) {
	f, err := parse[Fleet]("fleet document", doc)
	if err != nil {
		return nil, err
	}
	if where := f.nullEntry(); where != "" {
		return nil, fmt.Errorf("fleet document: %w: %s is null", pki.ErrShape, where)
	}
	return f, nil
}

// nullEntry names an entry of a map that was null: each of them has a list that
// must be present, and a list that was read is never nil.
func (f *Fleet) nullEntry() string {
	for name, h := range f.Hosts {
		if h == nil {
			return "hosts/" + name
		}
	}
	for name, s := range f.OperatorScopes {
		if s == nil {
			return "operatorScopes/" + name
		}
	}
	for name, c := range f.Channels {
		if c.Compliance.Frameworks == nil {
			return "channels/" + name
		}
	}
	for name, p := range f.RolloutPolicies {
		if p.Waves == nil {
			return "rolloutPolicies/" + name
		}
	}
	for channel, waves := range f.Waves {
		if waves == nil {
			return "waves/" + channel
		}
	}
	return ""
}

// ParseManifest reads a manifest; see ParseFleet.
func ParseManifest(doc []byte) (*Manifest, error) { return parse[Manifest]("manifest", doc) }

// ParseHead reads a head; see ParseFleet.
func ParseHead(doc []byte) (*Head, error) { return parse[Head]("head", doc) }

// ParseRevocations reads a revocation list; see ParseFleet.
func ParseRevocations(doc []byte) (*Revocations, error) {
	return parse[Revocations]("revocation list", doc)
}

// ParseNonces reads a list of bootstrap nonces; see ParseFleet.
func ParseNonces(doc []byte) (*BootstrapNonces, error) {
	return parse[BootstrapNonces]("nonce list", doc)
}
