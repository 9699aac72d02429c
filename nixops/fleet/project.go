package fleet

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"nixfleet/pki"
)

// RolloutID is the canonical hash of a manifest, which is also its file name.
func RolloutID(m *Manifest) (id string, canonical []byte, err error) {
	canonical, err = pki.Marshal(m)
	if err != nil {
		return "", nil, fmt.Errorf("manifest of %s: %w", m.Channel, err)
	}
	return pki.HashHex(canonical), canonical, nil
}

// Project derives the manifest of one channel from the fleet document whose
// canonical hash is fleetHash. It is byte-exact with artifact schema v1. There is
// none (false) when no host of the channel has a closure.
func Project(f *Fleet, fleetHash, channel string) (*Manifest, bool, error) {
	c, ok := f.Channels[channel]
	if !ok {
		return nil, false, fmt.Errorf("project channel %q: not declared", channel)
	}
	policy, ok := f.RolloutPolicies[c.RolloutPolicy]
	if !ok {
		return nil, false, fmt.Errorf("project channel %q: rollout policy %q is not declared", channel, c.RolloutPolicy)
	}
	wave := map[string]uint32{}
	for i, w := range f.Waves[channel] {
		for _, host := range w.Hosts {
			if _, listed := wave[host]; !listed {
				wave[host] = uint32(i)
			}
		}
	}
	hostSet := []HostEntry{}
	for name, h := range f.Hosts {
		if h.Channel == channel && h.ClosureHash != nil {
			hostSet = append(hostSet, HostEntry{Hostname: name, WaveIndex: wave[name], TargetClosure: *h.ClosureHash})
		}
	}
	if len(hostSet) == 0 {
		return nil, false, nil
	}
	sort.Slice(hostSet, func(i, j int) bool { return hostSet[i].Hostname < hostSet[j].Hostname })

	budgets := []ManifestBudget{}
	for _, b := range f.DisruptionBudgets {
		budgets = append(budgets, ManifestBudget{
			Selector: b.Selector.plain(), Hosts: b.Selector.Select(f.Hosts),
			MaxInFlight: b.MaxInFlight, MaxInFlightPct: b.MaxInFlightPct,
		})
	}
	ref, short := "", "unknown"
	if f.Meta.CICommit != nil {
		ref = *f.Meta.CICommit
		characters := []rune(ref)
		short = string(characters[:min(8, len(characters))])
	}
	algorithm := pki.AlgorithmEd25519
	if f.Meta.SignatureAlgorithm != nil {
		algorithm = *f.Meta.SignatureAlgorithm
	}
	return &Manifest{
		SchemaVersion: 1, DisplayName: channel + "@" + short, Channel: channel, ChannelRef: ref,
		FleetResolvedHash: fleetHash, HostSet: hostSet, HealthGate: policy.HealthGate,
		ComplianceFrameworks: c.Compliance.Frameworks, DisruptionBudgets: budgets,
		Meta: Meta{SchemaVersion: 1, SignedAt: f.Meta.SignedAt, CICommit: f.Meta.CICommit, SignatureAlgorithm: &algorithm},
	}, true, nil
}

// Intent names what a channel of a release wants, apart from when it was
// signed: releases with equal intents are one rollout. That a wave may be empty is not a part of it: whoever declares
// it wants the rollout that waits to go on.
func Intent(f *Fleet, m *Manifest) (string, error) {
	policy := f.RolloutPolicies[f.Channels[m.Channel].RolloutPolicy]
	waves := slices.Clone(f.Waves[m.Channel])
	for i := range waves {
		waves[i].MayBeEmpty = false
	}
	canonical, err := pki.Marshal(struct {
		HostSet              []HostEntry       `json:"hostSet"`
		HealthGate           HealthGate        `json:"healthGate"`
		ComplianceFrameworks []string          `json:"complianceFrameworks"`
		DisruptionBudgets    []ManifestBudget  `json:"disruptionBudgets"`
		Waves                []Wave            `json:"waves"`
		OnHealthFailure      FailurePolicy     `json:"onHealthFailure"`
		FailureThreshold     *FailureThreshold `json:"failureThreshold,omitzero"`
		Strategy             string            `json:"strategy"`
	}{m.HostSet, m.HealthGate, m.ComplianceFrameworks, m.DisruptionBudgets, waves, policy.OnHealthFailure,
		policy.FailureThreshold, policy.Strategy})
	if err != nil {
		return "", fmt.Errorf("intent of %s: %w", m.Channel, err)
	}
	return pki.HashHex(canonical), nil
}

// Leaf is the Merkle leaf of one host: the canonical JSON of its entry.
func Leaf(e HostEntry) []byte {
	doc, err := pki.Marshal(e)
	if err != nil {
		// Host names that reach a manifest were strings of valid JSON.
		panic(fmt.Sprintf("leaf of %q: %v", e.Hostname, err))
	}
	return doc
}

// HostTree is the Merkle tree over a manifest's hosts, in its order.
func HostTree(m *Manifest) *pki.Tree {
	leaves := make([][]byte, len(m.HostSet))
	for i, e := range m.HostSet {
		leaves[i] = Leaf(e)
	}
	return pki.NewTree(leaves)
}

// ProjectHead derives the head of a manifest. A previous head with the same
// intent hands on its openedAt, so that signing anew is not a new rollout.
func ProjectHead(f *Fleet, m *Manifest, rolloutID string, previous *Head, confirmWindow,
	lease time.Duration) (*Head, error) {
	intent, err := Intent(f, m)
	if err != nil {
		return nil, err
	}
	if m.Meta.SignedAt == nil {
		return nil, fmt.Errorf("head of %s: the release has no signing time", m.Channel)
	}
	opened := *m.Meta.SignedAt
	if previous != nil && previous.Channel == m.Channel && previous.Intent == intent &&
		previous.OpenedAt.Before(opened.Time) {
		opened = previous.OpenedAt
	}
	channel := f.Channels[m.Channel]
	return &Head{
		SchemaVersion: 1, Kind: KindHead, Channel: m.Channel, RolloutID: rolloutID,
		ChannelRef: m.ChannelRef, DisplayName: m.DisplayName, FleetResolvedHash: m.FleetResolvedHash,
		Intent: intent, OpenedAt: opened, FreshnessWindow: channel.FreshnessWindow,
		ConfirmWindowSecs: uint32(confirmWindow / time.Second), LeaseSecs: uint32(lease / time.Second),
		OnHealthFailure: f.RolloutPolicies[channel.RolloutPolicy].OnHealthFailure,
		ComplianceMode:  channel.Compliance.Mode,
		HostSetRoot:     HostTree(m).Root(), HostCount: uint32(len(m.HostSet)), Meta: m.Meta,
	}, nil
}
