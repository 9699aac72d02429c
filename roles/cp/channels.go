package cp

import (
	"maps"
	"net/http"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func (p *views) channel(c *call) (any, error) {
	rel, name := p.snapshot.Load().rel, c.PathValue("name")
	channel, ok := rel.Fleet.Channels[name]
	if !ok {
		return nil, notFound("the fleet has no channel %q", name)
	}
	answer := channelOf(rel, name, channel)
	answer.Freeze = frozen(look(p.world, (*rollout.World).Freezes), name)
	return answer, nil
}

// frozen is the freeze of a channel for the wire; nil when there is none.
func frozen(freezes []rollout.Freeze, channel string) *protocol.ChannelFreeze {
	for _, f := range freezes {
		if f.Channel == channel {
			return &protocol.ChannelFreeze{Until: pki.At(f.Until), At: pki.At(f.At), By: f.By, Reason: f.Reason}
		}
	}
	return nil
}

func channelOf(rel *fleet.Release, name string, channel fleet.Channel) protocol.ChannelResponse {
	at := protocol.Offset(rel.SignedAt)
	return protocol.ChannelResponse{
		Name: name, DeclaredCICommit: text(rel.Commit), SignedAt: &at, FreshnessWindowMinutes: channel.FreshnessWindow,
	}
}

// channels lists the channels of the release in force, with how their hosts stand.
func (p *views) channels(c *call) (any, error) {
	rel := p.snapshot.Load().rel
	counts, newest := map[string]*protocol.HostCounts{}, map[string]rollout.RolloutView{}
	freezes := look(p.world, func(w *rollout.World, now time.Time) []rollout.Freeze {
		for _, v := range p.seen.present(w.Hosts(now), now) {
			if counts[v.Channel] == nil {
				counts[v.Channel] = &protocol.HostCounts{}
			}
			counts[v.Channel].Add(standing(&v))
		}
		for _, v := range w.Rollouts(now) {
			if _, newer := newest[v.Channel]; !newer {
				newest[v.Channel] = v
			}
		}
		return w.Freezes(now)
	})
	out := protocol.ChannelsResponse{Channels: []protocol.ChannelEntry{}}
	for _, name := range slices.Sorted(maps.Keys(rel.Fleet.Channels)) {
		if !c.scopes.channel(name) {
			continue
		}
		e := protocol.ChannelEntry{ChannelResponse: channelOf(rel, name, rel.Fleet.Channels[name])}
		e.Freeze = frozen(freezes, name)
		if n := counts[name]; n != nil {
			e.Counts = *n
		}
		if v, ok := newest[name]; ok {
			e.RolloutID, e.RolloutState = text(v.RolloutID), string(v.State)
		}
		out.Channels = append(out.Channels, e)
	}
	return out, nil
}

// waves says how the hosts of each wave of a rollout stand.
func (p *views) waves(c *call) (any, error) {
	id, err := knownRollout(c, p.store)
	if err != nil {
		return nil, err
	}
	if _, ok := p.world.view(id); !ok {
		return nil, bareStatus(http.StatusNotFound)
	}
	out := protocol.RolloutWaves{RolloutID: id, Waves: []protocol.RolloutWave{}}
	views := look(p.world, func(w *rollout.World, _ time.Time) []rollout.WaveView { return w.Waves(id) })
	for i, v := range views {
		wave := protocol.RolloutWave{
			Wave: uint32(i), Open: v.Open, SoakSecs: uint32(v.Soak / time.Second), Hosts: uint32(v.Hosts),
			OpenedAt: stamp(v.OpenedAt), SoakingUntil: stamp(v.SoakingUntil), States: map[string]int{},
		}
		for state, n := range v.States {
			wave.States[string(state)] = n
		}
		out.Waves = append(out.Waves, wave)
	}
	return out, nil
}

func stamp(t *time.Time) *pki.Timestamp {
	if t == nil {
		return nil
	}
	return moment(*t)
}
