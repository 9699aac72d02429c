package fleet

import (
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
)

func mustProject(t *testing.T, f *Fleet, channel string) *Manifest {
	t.Helper()
	m, any, err := Project(f, fleetVectorHash, channel)
	if err != nil || !any {
		t.Fatalf("project %s: %v, %v", channel, any, err)
	}
	return m
}

func TestProjectEdges(t *testing.T) {
	f, _ := vectorFleet(t)
	f.Waves["stable"] = append(f.Waves["stable"], Wave{Hosts: []string{"web-02", "web-01"}})
	f.Hosts["zz"] = &Host{Channel: "stable", Tags: []string{}, ClosureHash: f.Hosts["db-01"].ClosureHash}
	f.Hosts["Zz"] = &Host{Channel: "stable", Tags: []string{}, ClosureHash: f.Hosts["db-01"].ClosureHash}
	f.Hosts["bare"] = &Host{Channel: "stable", Tags: []string{}}
	m := mustProject(t, f, "stable")
	var got []string
	for _, e := range m.HostSet {
		got = append(got, e.Hostname)
	}
	// By bytes; no host without closure, and none of another channel though a
	// wave names it (C11).
	if want := []string{"Zz", "db-01", "web-02", "zz"}; !slices.Equal(got, want) {
		t.Errorf("hosts %v, want %v", got, want)
	}
	if e, _ := m.Entry("web-02"); e.WaveIndex != 0 {
		t.Errorf("web-02 is in wave %d, the first that lists it is 0", e.WaveIndex)
	}
	if e, _ := m.Entry("zz"); e.WaveIndex != 0 {
		t.Errorf("zz is in no wave and got %d", e.WaveIndex)
	}

	f.Meta.CICommit, f.Meta.SignatureAlgorithm = nil, nil
	m = mustProject(t, f, "stable")
	if m.DisplayName != "stable@unknown" || m.ChannelRef != "" || *m.Meta.SignatureAlgorithm != "ed25519" ||
		m.Meta.CICommit != nil {
		t.Errorf("without a commit: %+v", m)
	}
	ref := "häßlich-lang"
	f.Meta.CICommit = &ref
	if m = mustProject(t, f, "stable"); m.DisplayName != "stable@häßlich-" {
		t.Errorf("eight characters: %q", m.DisplayName)
	}
	ref = "abc"
	if m = mustProject(t, f, "stable"); m.DisplayName != "stable@abc" {
		t.Errorf("short ref: %q", m.DisplayName)
	}

	for _, h := range f.Hosts {
		h.ClosureHash = nil
	}
	if _, any, err := Project(f, fleetVectorHash, "stable"); any || err != nil {
		t.Errorf("no closure: %v, %v", any, err)
	}
	if _, _, err := Project(f, fleetVectorHash, "beta"); err == nil {
		t.Error("an undeclared channel was projected")
	}
	delete(f.RolloutPolicies, "staged")
	if _, _, err := Project(f, fleetVectorHash, "stable"); err == nil {
		t.Error("a channel without policy was projected")
	}
}

// TestIntent_T12: signing anew is not a new rollout, and every part of what is
// wanted is.
func TestIntent_T12(t *testing.T) {
	intent := func(change func(*Fleet)) string {
		t.Helper()
		f, _ := vectorFleet(t)
		if change != nil {
			change(f)
		}
		got, err := Intent(f, mustProject(t, f, "stable"))
		if err != nil || !ValidRolloutID(got) {
			t.Fatalf("%q, %v", got, err)
		}
		return got
	}
	base := intent(nil)
	same := map[string]func(*Fleet){
		"signing time": func(f *Fleet) { at := pki.At(signingTime.Add(time.Hour)); f.Meta.SignedAt = &at },
		"commit":       func(f *Fleet) { ref := "0000000000000000000000000000000000000000"; f.Meta.CICommit = &ref },
		"a closure of another channel": func(f *Fleet) {
			c := *f.Hosts["web-02"].ClosureHash
			f.Hosts["web-01"].ClosureHash = &c
		},
		"a wave that may be empty":  func(f *Fleet) { f.Waves["stable"][0].MayBeEmpty = true },
		"until when a slot is held": func(f *Fleet) { f.DisruptionBudgets[0].SlotUntil = SlotConfirmed },
		"window": func(f *Fleet) {
			c := f.Channels["stable"]
			c.FreshnessWindow++
			f.Channels["stable"] = c
		},
	}
	for name, change := range same {
		if intent(change) != base {
			t.Errorf("%s changed the intent", name)
		}
	}
	policy := func(change func(*Policy)) func(*Fleet) {
		return func(f *Fleet) { p := f.RolloutPolicies["staged"]; change(&p); f.RolloutPolicies["staged"] = p }
	}
	for name, change := range map[string]func(*Fleet){
		"closure":         func(f *Fleet) { c := *f.Hosts["web-02"].ClosureHash; f.Hosts["db-01"].ClosureHash = &c },
		"host set":        func(f *Fleet) { f.Hosts["web-02"].ClosureHash = nil },
		"soak":            func(f *Fleet) { f.Waves["stable"][0].SoakMinutes++ },
		"soak in seconds": func(f *Fleet) { s := uint32(3); f.Waves["stable"][0].SoakSeconds = &s },
		"wave":            func(f *Fleet) { f.Waves["stable"] = f.Waves["stable"][:1] },
		"budget":          func(f *Fleet) { two := uint32(2); f.DisruptionBudgets[0].MaxInFlight = &two },
		"framework": func(f *Fleet) {
			c := f.Channels["stable"]
			c.Compliance.Frameworks = nil
			f.Channels["stable"] = c
		},
		"failure policy": policy(func(p *Policy) { p.OnHealthFailure = OnFailureHalt }),
		"threshold":      policy(func(p *Policy) { p.FailureThreshold = &FailureThreshold{} }),
		"strategy":       policy(func(p *Policy) { p.Strategy = "canary" }),
		"health gate":    policy(func(p *Policy) { p.HealthGate = HealthGate{} }),
	} {
		if intent(change) == base {
			t.Errorf("%s did not change the intent", name)
		}
	}
}

func TestOpenedAtIsHandedOn_T12(t *testing.T) {
	first := newDraft(t).mustLoad()
	again := newDraft(t).at(signingTime.Add(time.Minute))
	again.previous = first
	r := again.mustLoad()
	a, b := first.Channels["stable"], r.Channels["stable"]
	if a.RolloutID == b.RolloutID || a.Intent != b.Intent || !b.OpenedAt.Equal(signingTime) {
		t.Errorf("signed anew: ids %.8s %.8s, intents %.8s %.8s, opened %s", a.RolloutID, b.RolloutID, a.Intent, b.Intent,
			b.OpenedAt)
	}
	changed := newDraft(t).at(signingTime.Add(time.Minute))
	changed.previous = first
	changed.fleet.Hosts["db-01"].ClosureHash = changed.fleet.Hosts["web-02"].ClosureHash
	r = changed.mustLoad()
	if got := r.Channels["stable"].OpenedAt; !got.Equal(signingTime.Add(time.Minute)) {
		t.Errorf("a new intent was opened at %s", got)
	}
	if got := r.Channels["edge"].OpenedAt; !got.Equal(signingTime) {
		t.Errorf("the channel that did not change was opened at %s", got)
	}
}

func TestValidNames_C3(t *testing.T) {
	hash := "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r"
	for name, want := range map[string]bool{
		hash + "-nixos-system-web-01-25.11": true,
		hash + "-a+b?c=d_e.f":               true,
		hash:                                false,
		hash + "-":                          false,
		hash + "-.hidden":                   false,
		hash + "-a/b":                       false,
		hash + "-a b":                       false,
		hash + "-a\n":                       false,
		"\n" + hash + "-a":                  false,
		"/nix/store/" + hash + "-a":         false,
		strings.Replace(hash, "a", "e", 1) + "-a": false, // not a digit of Nix's base 32
		strings.ToUpper(hash) + "-a":              false,
		hash[1:] + "-a":                           false,
		hash + "-" + strings.Repeat("a", 211):     true,
		hash + "-" + strings.Repeat("a", 212):     false,
		"":                                        false,
	} {
		if ValidClosure(name) != want {
			t.Errorf("ValidClosure(%q) is %v", name, !want)
		}
	}
}
