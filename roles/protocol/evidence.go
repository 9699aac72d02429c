package protocol

import (
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

// ErrEvent means that the contract does not have the event, or that its details are not those
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

// Parsed is a report whose details have been read. It is made once, where the report arrives.
type Parsed struct {
	*ReportRequest
	// Details points to the type of the event's details, such as *ActivationFailed.
	Details any
}

// ParseReport reads the details of a report.
func ParseReport(r *ReportRequest) (*Parsed, error) {
	details, err := ParseDetails(r.Event, r.Details)
	if err != nil {
		return nil, err
	}
	return &Parsed{r, details}, nil
}

// evidence is what a host signs of an event, and the place of the signature in its details.
type evidence struct {
	members   map[string]any // besides hostname and rollout; an absent value is null
	signature **string
}

// evidenceOf gives the evidence of details as ParseDetails made them; ok is false for events that are not signed.
func evidenceOf(event string, details any) (e evidence, ok bool, err error) {
	ok = true
	switch d := details.(type) {
	case *ActivationFailed:
		text := ""
		if d.StderrTail != nil {
			text = *d.StderrTail
		}
		e = evidence{map[string]any{"phase": d.Phase, "exitCode": d.ExitCode}, &d.Signature}
		e.members["stderrTailSha256"], err = textHash(text)
	case *RealiseFailed:
		e = evidence{map[string]any{"closureHash": d.ClosureHash, "reason": d.Reason}, &d.Signature}
	case *VerifyMismatch:
		e = evidence{map[string]any{"expected": d.Expected, "actual": d.Actual}, &d.Signature}
	case *Reasoned:
		if ok = event == EventRollbackTriggered; ok {
			e = evidence{map[string]any{"reason": d.Reason}, &d.Signature}
		}
	case *ClosureSignatureMismatch:
		e = evidence{map[string]any{"closureHash": d.ClosureHash}, &d.Signature}
		e.members["stderrTailSha256"], err = textHash(d.StderrTail)
	case *StaleTarget:
		e = evidence{map[string]any{
			"closureHash": d.ClosureHash, "channelRef": d.ChannelRef, "signedAt": d.SignedAt,
			"freshnessWindowSecs": d.FreshnessWindowSecs, "ageSecs": d.AgeSecs,
		}, &d.Signature}
	case *ComplianceFailure:
		e = evidence{map[string]any{
			"controlId": d.ControlID, "status": d.Status, "frameworkArticles": d.FrameworkArticles,
			"evidenceCollectedAt": d.EvidenceCollectedAt,
		}, &d.Signature}
		e.members["evidenceSnippetSha256"], err = snippetHash(d.EvidenceSnippet)
	case *RuntimeGateError:
		e = evidence{map[string]any{
			"reason": d.Reason, "collectorExitCode": d.CollectorExitCode, "evidenceCollectedAt": d.EvidenceCollectedAt,
			"activationCompletedAt": d.ActivationCompletedAt,
		}, &d.Signature}
	case *ManifestProblem:
		e = evidence{map[string]any{"rolloutId": d.RolloutID, "reason": d.Reason}, &d.Signature}
	default:
		ok = false
	}
	return e, ok, err
}

func none(v jsontext.Value) bool { return len(v) == 0 || v.Kind() == 'n' }

// textHash hashes the canonical JSON string, quotes included. No text counts as the empty one.
func textHash(text string) (string, error) {
	doc, err := pki.Marshal(text)
	if err != nil {
		return "", err
	}
	return pki.HashHex(doc), nil
}

// snippetHash hashes the canonical snippet, shortened when it is too large. Without one it is the empty text.
func snippetHash(v jsontext.Value) (string, error) {
	if none(v) {
		return "", nil
	}
	snippet, err := shortened(v)
	if err != nil {
		return "", err
	}
	return pki.HashHex(snippet), nil
}

// payload is the canonical text that a host signs: a flat object with every listed member.
func (e evidence) payload(hostname string, rollout *string) ([]byte, error) {
	e.members["hostname"], e.members["rollout"] = hostname, rollout
	return pki.Marshal(e.members)
}

// Signer signs with the key of a host, such as a *pki.PrivateKey.
type Signer interface {
	Sign(message []byte) ([]byte, error)
}

// SignEvidence encodes details (one of the detail types) and, for an event that is signed, adds `signature` by the
// host's key. A compliance snippet above 1024 bytes is replaced by its size and beginning first. A nil key leaves
// the event unsigned.
func SignEvidence(key Signer, hostname string, rollout *string, event string, details any) (jsontext.Value, error) {
	doc, err := signEvidence(key, hostname, rollout, event, details)
	if err != nil {
		return nil, fmt.Errorf("evidence of %s: %w", event, err)
	}
	return doc, nil
}

func signEvidence(key Signer, hostname string, rollout *string, event string, given any) (jsontext.Value, error) {
	doc, err := pki.Marshal(given)
	if err != nil {
		return nil, err
	}
	details, err := ParseDetails(event, doc)
	if err != nil {
		return nil, err
	}
	if d, ok := details.(*ComplianceFailure); ok && !none(d.EvidenceSnippet) {
		if d.EvidenceSnippet, err = shortened(d.EvidenceSnippet); err != nil {
			return nil, err
		}
	}
	e, signed, err := evidenceOf(event, details)
	if err != nil {
		return nil, err
	}
	if signed && key != nil {
		payload, err := e.payload(hostname, rollout)
		if err != nil {
			return nil, err
		}
		sig, err := key.Sign(payload)
		if err != nil {
			return nil, err
		}
		text := base64.StdEncoding.EncodeToString(sig)
		*e.signature = &text
	}
	return pki.Marshal(details)
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

// VerifyEvidence judges a report's signature by the declared host key, an OpenSSH line; nil when the host has none.
// signed is false for events that are not signed, which have no verdict.
func VerifyEvidence(hostKey *string, r *Parsed) (v Verdict, signed bool) {
	e, signed, err := evidenceOf(r.Event, r.Details)
	switch {
	case !signed:
		return "", false
	case err != nil:
		return VerdictMalformed, true
	case *e.signature == nil:
		return VerdictUnsigned, true
	case hostKey == nil:
		return VerdictNoPubkey, true
	}
	payload, err := e.payload(r.Hostname, r.Rollout)
	if err != nil {
		return VerdictMalformed, true
	}
	return verify(payload, **e.signature, *hostKey), true
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
		// Only text that is not UTF-8 could fail, and then nothing verifies.
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
