package nixops

import "time"

// SimClosure is how a simulated closure behaves: the JSON of
// `<cache>/<base name>.json`. The zero value is a good closure without an agent.
type SimClosure struct {
	// What the cache does with it.
	Signature string        `json:"signature,omitzero"` // "" good; "unsigned", "foreign", "corrupt", "other-path"
	FetchTime time.Duration `json:"fetchTime,omitzero"`
	Size      uint64        `json:"size,omitzero"` // bytes it takes in the store

	// What it contains.
	NoSwitch        bool     `json:"noSwitch,omitzero"`
	Specialisations []string `json:"specialisations,omitzero"`
	Agent           string   `json:"agent,omitzero"` // path of its own agent; "self" is the running executable
	TrustJSON       string   `json:"trustJSON,omitzero"`
	Kernel          string   `json:"kernel,omitzero"`
	Initrd          string   `json:"initrd,omitzero"`
	KernelParams    string   `json:"kernelParams,omitzero"`
	Systemd         string   `json:"systemd,omitzero"`
	DBus            string   `json:"dbus,omitzero"`
	SwitchInhibitor string   `json:"switchInhibitor,omitzero"`

	// What its switch script does.
	SwitchTime time.Duration `json:"switchTime,omitzero"`
	ExitCode   int           `json:"exitCode,omitzero"`  // of `test` and `switch`
	BootExit   int           `json:"bootExit,omitzero"`  // of `boot`
	CheckExit  int           `json:"checkExit,omitzero"` // of `check`; a failing check also makes `test` and `switch` exit 1
	NoCheck    bool          `json:"noCheck,omitzero"`   // does not know `check`

	// What runs afterwards.
	FailedUnits []string      `json:"failedUnits,omitzero"` // failed once the switch ends; the exit code is then 4 unless ExitCode is set
	LateUnits   []string      `json:"lateUnits,omitzero"`   // fail LateAfter after the switch, which itself reports success
	LateAfter   time.Duration `json:"lateAfter,omitzero"`
	CrashLoop   []string      `json:"crashLoop,omitzero"` // never `failed`, restarted every CrashEvery
	CrashEvery  time.Duration `json:"crashEvery,omitzero"`
	CutsNetwork bool          `json:"cutsNetwork,omitzero"` // Sim.Online is false while it runs
	AgentBroken bool          `json:"agentBroken,omitzero"` // Sim.AgentStarts is false while it runs
}
