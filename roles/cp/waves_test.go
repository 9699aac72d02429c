package cp

import (
	"context"
	"slices"
	"testing"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// TestWavesChannelsAndHistory reads one small rollout through the views that tell of it.
func TestWavesChannelsAndHistory(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	soak := uint32(600)
	e.fleet.Waves["stable"][0].SoakSeconds = &soak
	e.publish()
	p := e.serve()
	ctx, operator := context.Background(), p.operator()
	canary := p.agent("a")
	for _, closure := range []string{closureOf("a", 0), closureOf("a", 1)} {
		answer := p.checkin(canary, e.state("a", closure), 0)
		if target := answer.Target; target != nil {
			if err := p.confirm(canary, "a", target); err != nil {
				t.Fatal(err)
			}
		}
	}
	id := e.rolloutID()
	answer, err := operator.Waves(ctx, id)
	if err != nil || len(answer.Waves) != 2 {
		t.Fatalf("%+v %v", answer, err)
	}
	first, second := answer.Waves[0], answer.Waves[1]
	if !first.Open || first.OpenedAt == nil || first.SoakSecs != 600 || first.Hosts != 1 ||
		first.States[string(protocol.HostHealthy)] != 1 || first.SoakingUntil == nil ||
		!first.SoakingUntil.After(first.OpenedAt.Time) {
		t.Errorf("the open wave: %+v", first)
	}
	if second.Open || second.OpenedAt != nil || second.SoakingUntil != nil || second.Hosts != 2 ||
		second.States[string(protocol.HostQueued)] != 2 {
		t.Errorf("the wave that waits: %+v", second)
	}

	channels, err := operator.Channels(ctx)
	if err != nil || len(channels.Channels) != 1 {
		t.Fatalf("%+v %v", channels, err)
	}
	stable := channels.Channels[0]
	if stable.Name != "stable" || stable.Counts.Hosts != 3 || stable.RolloutID == nil || *stable.RolloutID != id ||
		stable.RolloutState != string(protocol.RolloutExecuting) || stable.DeclaredCICommit == nil {
		t.Errorf("the channel: %+v", stable)
	}

	heads, err := operator.Rollouts(ctx, client.RolloutsQuery{Heads: true})
	if err != nil || len(heads.Rollouts) != 1 || len(heads.Rollouts[0].HostStates) != 0 || heads.Rollouts[0].Ref == "" {
		t.Errorf("rollouts without hosts: %+v %v", heads, err)
	}
	wave := 1
	rest, err := operator.HostsPage(ctx, client.HostsQuery{Rollout: id, Wave: &wave})
	if err != nil || names(rest) != "b c" || rest.Hosts[0].Wave == nil || *rest.Hosts[0].Wave != 1 {
		t.Errorf("hosts of wave 1: %+v %v", rest, err)
	}
	one, err := operator.HostsPage(ctx, client.HostsQuery{Closure: closureOf("a", 1)})
	if err != nil || names(one) != "a" {
		t.Errorf("hosts of the closure: %+v %v", one, err)
	}

	past, err := operator.History(ctx, protocol.HistoryQuery{Host: "a"})
	if err != nil || len(past.Events) == 0 ||
		slices.ContainsFunc(past.Events, func(e protocol.Event) bool { return e.Host != "a" }) {
		t.Errorf("history of the host: %+v %v", past, err)
	}
	if err := operator.Hold(ctx, id, protocol.ActionPause, "a <b> & c"); err != nil {
		t.Fatal(err)
	}
	audit, err := operator.Audit(ctx, 0, 1)
	if err != nil || len(audit.Entries) != 1 || audit.Entries[0].Action != "pause" || audit.Entries[0].Subject != id ||
		audit.Entries[0].Reason != "a <b> & c" || audit.Before == 0 {
		t.Errorf("audit: %+v %v", audit, err)
	}
}
