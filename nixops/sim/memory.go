package sim

import (
	"time"

	"nixfleet/nixops"
)

// memory is everything a simulated machine remembers. What happens by itself
// (a switch ends, a unit fails later) is done by nothing: it is worked out
// from the clock when somebody looks, so that the machine goes on while no
// process has it open.
type memory struct {
	Boot      bootMemory        `json:"boot"`
	Current   string            `json:"current"`
	Profile   string            `json:"profile"`
	Switched  time.Time         `json:"switched"` // when Current took over
	Failed    []string          `json:"failed"`   // units that failed then
	Roots     map[string]string `json:"roots"`
	Units     map[string]ran    `json:"units"`
	Deadlines map[string]armed  `json:"deadlines"`
	LockHeld  bool              `json:"lockHeld"`
	Lists     string            `json:"lists"` // closure whose killed switch left its lists
	StoreFree uint64            `json:"storeFree"`
	BootFree  uint64            `json:"bootFree"`
	Fetched   map[string]int    `json:"fetched"` // closure -> times it came from the cache
}

// bootMemory is the boot loader and what it has booted.
type bootMemory struct {
	Boots       int           `json:"boots"`
	BootedAt    time.Time     `json:"bootedAt"`
	Asleep      time.Duration `json:"asleep"` // since then
	Booted      string        `json:"booted"`
	BootDefault string        `json:"bootDefault"`
	Staged      string        `json:"staged"`   // in a profile of its own
	Entries     []string      `json:"entries"`  // of the boot loader's menu
	BootOnce    string        `json:"bootOnce"` // that the next boot starts instead of the default
	Loader      string        `json:"loader"`   // "" is systemd-boot; any other cannot boot once
}

type ran struct {
	Closure string        `json:"closure"`
	Action  nixops.Action `json:"action"`
	NoCheck bool          `json:"noCheck"`
	Start   time.Time     `json:"start"`
	End     time.Time     `json:"end"`
	Done    bool          `json:"done"`
	Exit    int           `json:"exit"`
	Signal  string        `json:"signal"`
}

type armed struct {
	At      time.Time     `json:"at"`
	After   time.Duration `json:"after"`
	Command []string      `json:"command"`
}
