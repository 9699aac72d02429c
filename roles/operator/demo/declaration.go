package demo

import "nixfleet/nixops/fleet"

// canary is the host that gets each release of channel stable first.
func (s *story) canary() string { return s.names[0] }

// stable is how many hosts are on channel stable; the rest are on edge.
func (s *story) stable() int { return s.hosts - max(1, s.hosts/3) }

// declaration is what mkFleet would give: two channels, and on stable a canary
// that soaks before the rest goes.
func (s *story) declaration() *fleet.Fleet {
	soak := func(seconds uint32, hosts ...string) fleet.Wave {
		return fleet.Wave{Hosts: append([]string{}, hosts...), SoakMinutes: (seconds + 59) / 60, SoakSeconds: &seconds}
	}
	f := &fleet.Fleet{
		SchemaVersion: 1, Hosts: map[string]*fleet.Host{}, Meta: fleet.Meta{SchemaVersion: 1},
		Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{
			"canary": {Strategy: "canary", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt},
			"fast":   {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt},
		},
		Waves: map[string][]fleet.Wave{
			"stable": {soak(2, s.names[0]), soak(1, s.names[1:s.stable()]...)},
			"edge":   {},
		},
	}
	for channel, policy := range map[string]string{"stable": "canary", "edge": "fast"} {
		f.Channels[channel] = fleet.Channel{
			RolloutPolicy: policy, ReconcileIntervalMinutes: 1, FreshnessWindow: 120, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled},
		}
	}
	for i, name := range s.names {
		pubkey, channel := s.pubkeys[name], "stable"
		if i >= s.stable() {
			channel = "edge"
		}
		f.Hosts[name] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: channel, Pubkey: &pubkey}
	}
	return f
}
