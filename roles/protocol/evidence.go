package protocol

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// maxSnippet is the largest evidence snippet that is sent whole, in bytes;
// previewRunes of a larger one are kept.
const (
	maxSnippet   = 1024
	previewRunes = 900
)

// signedMember is one member of a signed payload: its name there, the name of
// the detail it comes from, and how.
type signedMember struct {
	payload, detail string
	as              func(jsontext.Value) (any, error)
}

// signedEvents are the events that a host signs, with the members of their
// payload besides hostname and rollout.
var signedEvents = map[string][]signedMember{
	EventActivationFailed:         {{"phase", "phase", asIs}, {"exitCode", "exit_code", asIs}, {"stderrTailSha256", "stderr_tail", asTextHash}},
	EventRealiseFailed:            {{"closureHash", "closure_hash", asIs}, {"reason", "reason", asIs}},
	EventVerifyMismatch:           {{"expected", "expected", asIs}, {"actual", "actual", asIs}},
	EventRollbackTriggered:        {{"reason", "reason", asIs}},
	EventClosureSignatureMismatch: {{"closureHash", "closure_hash", asIs}, {"stderrTailSha256", "stderr_tail", asTextHash}},
	EventStaleTarget: {{"closureHash", "closure_hash", asIs}, {"channelRef", "channel_ref", asIs}, {"signedAt", "signed_at", asTime},
		{"freshnessWindowSecs", "freshness_window_secs", asIs}, {"ageSecs", "age_secs", asIs}},
	EventComplianceFailure: {{"controlId", "control_id", asIs}, {"status", "status", asIs}, {"frameworkArticles", "framework_articles", asIs},
		{"evidenceCollectedAt", "evidence_collected_at", asTime}, {"evidenceSnippetSha256", "evidence_snippet", asSnippetHash}},
	EventRuntimeGateError: {{"reason", "reason", asIs}, {"collectorExitCode", "collector_exit_code", asIs},
		{"evidenceCollectedAt", "evidence_collected_at", asTime}, {"activationCompletedAt", "activation_completed_at", asTime}},
	EventManifestMissing:      {{"rolloutId", "rollout_id", asIs}, {"reason", "reason", asIs}},
	EventManifestVerifyFailed: {{"rolloutId", "rollout_id", asIs}, {"reason", "reason", asIs}},
	EventManifestMismatch:     {{"rolloutId", "rollout_id", asIs}, {"reason", "reason", asIs}},
}

// detailTypes are the types of the details, by event: all events that there are.
var detailTypes = map[string]func() any{
	EventActivationStarted:        func() any { return new(ActivationStarted) },
	EventActivationDeferred:       func() any { return new(ActivationDeferred) },
	EventClosureQuarantined:       func() any { return new(ClosureQuarantined) },
	EventActivationFailed:         func() any { return new(ActivationFailed) },
	EventRealiseFailed:            func() any { return new(RealiseFailed) },
	EventVerifyMismatch:           func() any { return new(VerifyMismatch) },
	EventRollbackTriggered:        func() any { return new(Reasoned) },
	EventEnrollmentFailed:         func() any { return new(Reasoned) },
	EventRenewalFailed:            func() any { return new(Reasoned) },
	EventTrustError:               func() any { return new(Reasoned) },
	EventClosureSignatureMismatch: func() any { return new(ClosureSignatureMismatch) },
	EventStaleTarget:              func() any { return new(StaleTarget) },
	EventComplianceFailure:        func() any { return new(ComplianceFailure) },
	EventRuntimeGateError:         func() any { return new(RuntimeGateError) },
	EventManifestMissing:          func() any { return new(ManifestProblem) },
	EventManifestVerifyFailed:     func() any { return new(ManifestProblem) },
	EventManifestMismatch:         func() any { return new(ManifestProblem) },
	EventOther:                    func() any { return new(Other) },
}

// KnownEvent reports whether tag is an event of the contract.
func KnownEvent(tag string) bool { return detailTypes[tag] != nil }

// ErrEvent: the event is none of the contract, or its details are not those
// that it has.
var ErrEvent = errors.New("not an event of the contract")

// ParseDetails reads the details of an event into a pointer to their type, such
// as *ActivationFailed. Members that are not known are ignored. It checks no
// signature.
func ParseDetails(event string, details jsontext.Value) (any, error) {
	newDetails := detailTypes[event]
	if newDetails == nil {
		return nil, fmt.Errorf("%w: %.80q", ErrEvent, event)
	}
	d := newDetails()
	if _, err := DecodeStrict(details, d); err != nil {
		return nil, fmt.Errorf("%w: details of %s: %w", ErrEvent, event, err)
	}
	return d, nil
}

func none(v jsontext.Value) bool { return len(v) == 0 || v.Kind() == 'n' }

func asIs(v jsontext.Value) (any, error) {
	if none(v) {
		return nil, nil
	}
	return v, nil
}

// asTime writes a time in the one written form, whatever form it came in.
func asTime(v jsontext.Value) (any, error) {
	if none(v) {
		return nil, nil
	}
	var t pki.Timestamp
	if err := json.Unmarshal(v, &t); err != nil {
		return nil, err
	}
	return t, nil
}

// asTextHash hashes the canonical JSON string, quotes included; no text counts
// as the empty one.
func asTextHash(v jsontext.Value) (any, error) {
	if none(v) {
		v = jsontext.Value(`""`)
	}
	if v.Kind() != '"' {
		return nil, fmt.Errorf("not a string")
	}
	return pki.CanonicalHash(v)
}

// asSnippetHash hashes the canonical snippet, shortened when it is too large;
// without one it is the empty text.
func asSnippetHash(v jsontext.Value) (any, error) {
	if none(v) {
		return "", nil
	}
	snippet, err := shortened(v)
	if err != nil {
		return nil, err
	}
	return pki.HashHex(snippet), nil
}

// EvidencePayload is the canonical text that a host signs for an event: a flat
// object with every listed member, null where the value is absent. signed is
// false for events that are not signed.
func EvidencePayload(hostname string, rollout *string, event string, details jsontext.Value) (payload []byte, signed bool, err error) {
	members, signed := signedEvents[event]
	if !signed {
		return nil, false, nil
	}
	var in map[string]jsontext.Value
	if err := json.Unmarshal(details, &in); err != nil || in == nil {
		return nil, true, fmt.Errorf("evidence of %s: details are no object: %w", event, cmp.Or(err, ErrEvent))
	}
	out := map[string]any{"hostname": hostname, "rollout": rollout}
	for _, m := range members {
		if out[m.payload], err = m.as(in[m.detail]); err != nil {
			return nil, true, fmt.Errorf("evidence of %s: %s: %w", event, m.detail, err)
		}
	}
	payload, err = pki.Marshal(out)
	if err != nil {
		return nil, true, fmt.Errorf("evidence of %s: %w", event, err)
	}
	return payload, true, nil
}

// Signer signs with the key of a host, such as a *pki.PrivateKey.
type Signer interface {
	Sign(message []byte) ([]byte, error)
}

// SignEvidence encodes details (one of the detail types) and, for an event that
// is signed, adds `signature` by the host's key. A compliance snippet above
// 1024 bytes is replaced by its size and beginning first. A nil key leaves the
// event unsigned.
func SignEvidence(key Signer, hostname string, rollout *string, event string, details any) (jsontext.Value, error) {
	doc, err := pki.Marshal(details)
	if err != nil {
		return nil, fmt.Errorf("evidence of %s: %w", event, err)
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(doc, &members); err != nil {
		return nil, fmt.Errorf("evidence of %s: %w", event, err)
	}
	if snippet := members["evidence_snippet"]; event == EventComplianceFailure && !none(snippet) {
		if members["evidence_snippet"], err = shortened(snippet); err != nil {
			return nil, fmt.Errorf("evidence of %s: %w", event, err)
		}
		if doc, err = pki.Marshal(members); err != nil {
			return nil, fmt.Errorf("evidence of %s: %w", event, err)
		}
	}
	payload, signed, err := EvidencePayload(hostname, rollout, event, doc)
	if err != nil || !signed || key == nil {
		return doc, err
	}
	sig, err := key.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("evidence of %s: %w", event, err)
	}
	members["signature"] = jsontext.Value(`"` + base64.StdEncoding.EncodeToString(sig) + `"`)
	return pki.Marshal(members)
}

// shortened is the canonical form of a snippet, or of what stands for one above
// maxSnippet: its size in bytes and the first characters of that form. What
// stands for one already is left, though its own escapes may make it larger.
func shortened(snippet jsontext.Value) (jsontext.Value, error) {
	canonical, err := pki.Canonicalize(snippet)
	if err != nil {
		return nil, err
	}
	if len(canonical) <= maxSnippet || standsForSnippet(canonical) {
		return canonical, nil
	}
	preview := []rune(string(canonical))
	return pki.Marshal(map[string]any{
		"_truncated_":           true,
		"_original_size_bytes_": len(canonical),
		"_preview_":             string(preview[:min(previewRunes, len(preview))]),
	})
}

func standsForSnippet(canonical jsontext.Value) bool {
	var mark struct {
		Truncated bool `json:"_truncated_"`
	}
	return canonical.Kind() == '{' && json.Unmarshal(canonical, &mark) == nil && mark.Truncated
}

// Verdict is what a signature of a host is worth.
type Verdict string

// The verdicts. Mismatch and malformed count in no gate.
const (
	VerdictVerified       Verdict = "verified"
	VerdictUnsigned       Verdict = "unsigned"
	VerdictNoPubkey       Verdict = "no-pubkey"
	VerdictMismatch       Verdict = "mismatch"
	VerdictMalformed      Verdict = "malformed"
	VerdictWrongAlgorithm Verdict = "wrong-algorithm"
)

// Counts reports whether an event with this verdict may change state. Unsigned
// ones do, since v1 hosts without a readable key send such.
func (v Verdict) Counts() bool { return v != VerdictMismatch && v != VerdictMalformed }

// VerifyEvidence judges a report's signature by the declared host key, an
// OpenSSH line; nil when the host has none. signed is false for events that are
// not signed, which have no verdict.
func VerifyEvidence(hostKey *string, r *ReportRequest) (v Verdict, signed bool) {
	payload, signed, err := EvidencePayload(r.Hostname, r.Rollout, r.Event, r.Details)
	if !signed {
		return "", false
	}
	if err != nil {
		return VerdictMalformed, true
	}
	var d struct {
		Signature *string `json:"signature"`
	}
	if err := json.Unmarshal(r.Details, &d); err != nil {
		return VerdictMalformed, true
	}
	switch {
	case d.Signature == nil:
		return VerdictUnsigned, true
	case hostKey == nil:
		return VerdictNoPubkey, true
	}
	return verify(payload, *d.Signature, *hostKey), true
}

// VerifyProbe judges a base64 signature over the canonical form of payload by
// an OpenSSH key line.
func VerifyProbe(payload []byte, signature, hostKey string) Verdict {
	canonical, err := pki.Canonicalize(payload)
	if err != nil {
		return VerdictMalformed
	}
	return verify(canonical, strings.TrimSpace(signature), hostKey)
}

func verify(payload []byte, signature, hostKey string) Verdict {
	if fields := strings.Fields(hostKey); len(fields) >= 2 && fields[0] != "ssh-ed25519" {
		return VerdictWrongAlgorithm
	}
	key, err := pki.ParseHostKey(hostKey)
	if err != nil {
		return VerdictMalformed
	}
	sig, err := pki.DecodeBase64(signature)
	if err != nil || len(sig) != pki.SignatureSize {
		return VerdictMalformed
	}
	public := pki.PublicKey{Algorithm: pki.AlgorithmEd25519, Public: base64.StdEncoding.EncodeToString(key)}
	if !public.Verify(payload, sig) {
		return VerdictMismatch
	}
	return VerdictVerified
}

// AttestationPayload is the canonical text by which a host attests when it last
// confirmed, and for which rollout.
func AttestationPayload(hostname string, at pki.Timestamp, rolloutID string) []byte {
	doc, err := pki.Marshal(struct {
		Hostname        string        `json:"hostname"`
		LastConfirmedAt pki.Timestamp `json:"lastConfirmedAt"`
		RolloutID       string        `json:"rolloutId"`
	}{hostname, at, rolloutID})
	if err != nil {
		// Only text that is no UTF-8 could fail, and then nothing verifies.
		return nil
	}
	return doc
}

// SignAttestation is the base64 signature of AttestationPayload.
func SignAttestation(key Signer, hostname string, at pki.Timestamp, rolloutID string) (string, error) {
	sig, err := key.Sign(AttestationPayload(hostname, at, rolloutID))
	if err != nil {
		return "", fmt.Errorf("attest: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

// VerifyAttestation reports whether the host attested at for rolloutID.
func VerifyAttestation(hostKey, hostname string, at pki.Timestamp, rolloutID, signature string) bool {
	payload := AttestationPayload(hostname, at, rolloutID)
	return payload != nil && verify(payload, signature, hostKey) == VerdictVerified
}
