package explore

import "time"

const minute = time.Minute

func soaks(d ...time.Duration) []time.Duration { return d }

// fleets are the fleets that are explored, each with the few things that may go wrong in it: few, so that the search
// comes deep. A fault or an act is counted when it happens.
var fleets = []*spec{
	{
		name: "one", about: "one host; nothing goes wrong but its time", size: 43909,
		hosts: []place{{}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1},
	},
	{
		name: "one, moments", about: "one host; a moment before, at or after a deadline", size: 380352,
		hosts: []place{{}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "t",
	},
	{
		name: "one, answers", about: "one host; an answer is lost", size: 396595,
		hosts: []place{{}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "a",
	},
	{
		name: "one, trouble", about: "one host; it cannot do it, for reasons of its own", size: 395271,
		hosts: []place{{}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "h",
	},
	{
		name: "one, failure", about: "one host whose closure fails, and is tried again by an operator",
		hosts: []place{{bad: true}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1},
		faults: 1, may: "f", acts: 1, people: "rh",
	},
	{
		name: "one, restarts", about: "one host; the control plane starts again, or loses its database",
		hosts: []place{{bad: true}}, channels: []channel{{soaks: soaks(minute), revert: true}},
		contents: []int{1, 2, 1},
		faults:   2, may: "frw",
	},
	{
		name: "one, all", about: "one host and everything that may go wrong, twice",
		hosts: []place{{bad: true}}, channels: []channel{{soaks: soaks(minute)}}, contents: []int{1},
		faults: 2, may: "alfhpgtrws", acts: 1, people: "pcrh",
	},
	{
		name: "budget", about: "two equal hosts, a budget of one", hosts: []place{{}, {}}, budget: 1,
		channels: []channel{{soaks: soaks(0)}}, contents: []int{1}, faults: 1, may: "ag",
	},
	{
		name: "budget, lost", about: "two equal hosts, a budget of one; the database is lost", hosts: []place{{}, {}},
		budget:   1,
		channels: []channel{{soaks: soaks(0)}}, contents: []int{1}, faults: 1, may: "w",
	},
	{
		name: "budget, three", about: "three equal hosts, a budget of one, two releases", hosts: []place{{}, {}, {}},
		budget:   1,
		channels: []channel{{soaks: soaks(0)}}, contents: []int{1, 2}, faults: 1, may: "l",
	},
	{
		name: "budget, soak", about: "two equal hosts, a budget of one, whose slots are held until the soak is over",
		hosts: []place{{}, {}}, budget: 1,
		channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "gr", acts: 1, people: "h",
	},
	{
		name: "waves", about: "two waves; a restart, a release signed again", hosts: []place{{}, {wave: 1}},
		channels: []channel{{soaks: soaks(2*minute, minute)}}, contents: []int{1}, faults: 1, may: "rs",
	},
	{
		name: "waves, failure", about: "two waves; a host fails, and people act",
		hosts:    []place{{bad: true}, {wave: 1}},
		channels: []channel{{soaks: soaks(minute, minute)}}, contents: []int{1}, faults: 1, may: "fr", acts: 1,
		people: "pcrh",
	},
	{
		name: "recalled", about: "two waves under rollback-and-halt; a host of the second fails",
		hosts: []place{{}, {wave: 1, bad: true}}, channels: []channel{{soaks: soaks(0, minute), revert: true}},
		contents: []int{1, 2},
		faults:   2, may: "fra",
	},
	{
		name: "v1", about: "an agent of v1 and one of ours, a budget of one",
		hosts: []place{{bad: true, v1: true}, {}}, budget: 1,
		channels: []channel{{soaks: soaks(0)}}, contents: []int{1, 2}, faults: 1, may: "afxw", acts: 1, people: "h",
	},
	{
		name: "v1, two", about: "two agents of v1 in two waves under rollback-and-halt",
		hosts:    []place{{v1: true}, {wave: 1, v1: true, bad: true}},
		channels: []channel{{soaks: soaks(0, 0), revert: true}},
		contents: []int{1, 2}, faults: 1, may: "afxr",
	},
	{
		name: "edge", about: "a host that comes before another, which goes back by hand", hosts: []place{{}, {}},
		edges:    [][2]int{{0, 1}},
		channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "mgr",
	},
	{
		name: "chained", about: "two channels, the first before the second; people act",
		hosts: []place{{}, {channel: 1}}, chained: true,
		channels: []channel{{soaks: soaks(0)}, {soaks: soaks(0)}}, contents: []int{1, 2}, faults: 1, may: "r",
		acts: 1, people: "pc",
	},
	{
		name: "staged", about: "a host that stages for the next boot", hosts: []place{{}, {wave: 1}},
		channels: []channel{{soaks: soaks(0, 0)}}, contents: []int{1, 2}, faults: 2, may: "dr",
	},
	{
		name: "probed", about: "hosts with a health probe, which fails", hosts: []place{{}, {wave: 1}}, probes: true,
		channels: []channel{{soaks: soaks(2*minute, 0)}}, contents: []int{1}, faults: 1, may: "ir",
	},
	{
		name: "skewed", about: "clocks ahead by half a minute; the database is lost", hosts: []place{{}, {wave: 1}},
		skew:     30 * time.Second,
		channels: []channel{{soaks: soaks(2*minute, 0)}}, contents: []int{1}, faults: 1, may: "ws",
	},
	{
		name: "compliant", about: "compliance is enforced", hosts: []place{{}, {wave: 1}}, comply: true,
		channels: []channel{{soaks: soaks(minute, 0), revert: true}}, contents: []int{1, 2}, faults: 1, may: "c",
		acts: 1, people: "r",
	},
	{
		name: "fresh", about: "a freshness window of ten minutes", hosts: []place{{}}, fresh: 10 * minute,
		channels: []channel{{soaks: soaks(minute)}}, contents: []int{1}, faults: 1, may: "tsa",
	},
	{
		name: "four", about: "two channels of two waves, v1 and ours, a budget of one, everything",
		hosts: []place{{bad: true}, {wave: 1, v1: true}, {channel: 1, bad: true}, {channel: 1, wave: 1}}, budget: 1,
		chained:  true,
		channels: []channel{{soaks: soaks(minute, minute)}, {soaks: soaks(0, minute), revert: true}},
		contents: []int{1, 2},
		faults:   1, may: "alfhpgtrws", acts: 1, people: "pcrh",
	},
}

// shares divides so many states among the fleets. A fleet that has fewer leaves the rest to the others.
func shares(total int) map[string]int {
	out := map[string]int{}
	left, rest := total, len(fleets)
	for again := true; again; {
		again = false
		for _, s := range fleets {
			if _, done := out[s.name]; !done && s.size > 0 && s.size < left/rest {
				out[s.name], again = s.size+1000, true
				left, rest = left-s.size, rest-1
			}
		}
	}
	for _, s := range fleets {
		if _, done := out[s.name]; !done {
			out[s.name] = left / rest
		}
	}
	return out
}
