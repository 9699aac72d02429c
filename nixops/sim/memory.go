package sim

import (
	"time"

	"nixfleet/nixops"
)

// memory is the state of a simulated machine on disk. For what happens by itself (a switch ends, a unit fails later) no
// process runs: the machine computes it from the clock when somebody reads the state. The machine therefore goes on
// while no process has it open.
type memory struct {
	Boot      bootMemory        `json:"boot"`
	Current   string            `json:"current"`
	Profile   string            `json:"profile"`
	Switched  time.Time         `json:"switched"` // when Current became the running closure
	Failed    []string          `json:"failed"`   // units that failed at that time
	Roots     map[string]string `json:"roots"`
	Units     map[string]ran    `json:"units"`
	Deadlines map[string]armed  `json:"deadlines"`
	Notes     map[string][]byte `json:"notes"`   // of deadlines that were not disarmed
	Damaged   []string          `json:"damaged"` // closures of the store
	LockHeld  bool              `json:"lockHeld"`
	Lists     string            `json:"lists"` // closure whose killed switch left its lists
	StoreFree uint64            `json:"storeFree"`
	BootFree  uint64            `json:"bootFree"`
	Fetched   map[string]int    `json:"fetched"` // closure -> how many times it was fetched
}

// bootMemory is the state of the boot loader and of this boot.
type bootMemory struct {
	Boots       int           `json:"boots"`
	BootedAt    time.Time     `json:"bootedAt"`
	Asleep      time.Duration `json:"asleep"` // since BootedAt
	Booted      string        `json:"booted"`
	BootDefault string        `json:"bootDefault"`
	Staged      string        `json:"staged"`   // in a profile of its own
	Entries     []string      `json:"entries"`  // of the boot loader's menu
	BootOnce    string        `json:"bootOnce"` // closure that the next boot starts instead of the default
	Loader      string        `json:"loader"`   // "" is systemd-boot; any other cannot boot once
	Unknown     string        `json:"unknown"`  // why the host cannot read the loader
	UsedUp      []string      `json:"usedUp"`   // closures without tries
	ReadOnly    string        `json:"readOnly"` // directory of the partition that cannot be written

	This *nixops.ThisBoot `json:"this"` // how far each boot comes; nil: it is over and not counted
}

// ran is a unit that was started: a switch or a deadline's callback.
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

// armed is a deadline that has not fired yet.
type armed struct {
	At      time.Time     `json:"at"`
	After   time.Duration `json:"after"`
	Command []string      `json:"command"`
}
