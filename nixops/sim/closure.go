package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/disk"

	"nixfleet/nixops"
)

// Closure describes how a simulated closure behaves. It is the JSON document `<cache>/<base name>.json`, with durations
// such as "1.5s". The zero value is a good closure without an agent.
type Closure struct {
	// What the closure contains.
	NoSwitch        bool     `json:"noSwitch,omitzero"`
	Specialisations []string `json:"specialisations,omitzero"`
	Agent           string   `json:"agent,omitzero"` // path of its agent; "self" means the running executable
	TrustJSON       string   `json:"trustJSON,omitzero"`
	Kernel          string   `json:"kernel,omitzero"`
	Initrd          string   `json:"initrd,omitzero"`
	KernelParams    string   `json:"kernelParams,omitzero"`
	Systemd         string   `json:"systemd,omitzero"`
	DBus            string   `json:"dbus,omitzero"`
	SwitchInhibitor string   `json:"switchInhibitor,omitzero"`
	Version         string   `json:"version,omitzero"` // as nixos-version

	Cache  Cache  `json:"cache,omitzero"`
	Script Script `json:"script,omitzero"`
	NoBoot bool   `json:"noBoot,omitzero"` // the closure hangs when it is booted, until the next boot
	After  After  `json:"after,omitzero"`
}

// Cache describes what the cache does with a closure.
type Cache struct {
	Signature string        `json:"signature,omitzero"` // "" is good; or "unsigned", "foreign", "corrupt", "other-path"
	FetchTime time.Duration `json:"fetchTime,omitzero"`
	Size      uint64        `json:"size,omitzero"`     // bytes that the closure takes in the store
	BootSize  uint64        `json:"bootSize,omitzero"` // bytes of its kernel and initrd
}

// Script describes what a closure's switch script does.
type Script struct {
	SwitchTime time.Duration `json:"switchTime,omitzero"`
	ExitCode   int           `json:"exitCode,omitzero"`  // of `test` and `switch`
	BootExit   int           `json:"bootExit,omitzero"`  // of `boot`
	CheckExit  int           `json:"checkExit,omitzero"` // of `check`; `test` and `switch` exit 1 then
	Says       string        `json:"says,omitzero"`      // in a switch and in a dry run, about units
	NoCheck    bool          `json:"noCheck,omitzero"`   // the script does not know `check`
	BootSkips  bool          `json:"bootSkips,omitzero"` // `boot` exits 0 and changes nothing
	BootLate   bool          `json:"bootLate,omitzero"`  // `boot` changes the boot default, and exits BootExit after that
}

// After describes the machine once a closure was activated.
type After struct {
	FailedUnits   []string      `json:"failedUnits,omitzero"` // have failed when the switch ends; the switch then exits 4
	LateUnits     []string      `json:"lateUnits,omitzero"`   // fail LateAfter the switch, which reports success
	LateAfter     time.Duration `json:"lateAfter,omitzero"`
	CrashLoop     []string      `json:"crashLoop,omitzero"` // never `failed`, but restarted every CrashEvery
	CrashEvery    time.Duration `json:"crashEvery,omitzero"`
	Sockets       []string      `json:"sockets,omitzero"`     // listen; other sockets do not exist
	Inactive      []string      `json:"inactive,omitzero"`    // neither active nor failed
	InactiveFor   time.Duration `json:"inactiveFor,omitzero"` // after the switch; 0 means for ever
	Evidence      string        `json:"evidence,omitzero"`    // what its collector writes; NOW becomes the time
	CollectorExit int           `json:"collectorExit,omitzero"`
	CutsNetwork   bool          `json:"cutsNetwork,omitzero"` // Host.Online is false while the closure runs
	AgentBroken   bool          `json:"agentBroken,omitzero"` // Host.AgentStarts is false while the closure runs
}

// durations makes JSON write a time.Duration as text, so that people can edit it.
var durations = json.JoinOptions(
	json.WithMarshalers(json.MarshalToFunc(func(e *jsontext.Encoder, d time.Duration) error {
		return e.WriteToken(jsontext.String(d.String()))
	})),
	json.WithUnmarshalers(json.UnmarshalFromFunc(func(in *jsontext.Decoder, d *time.Duration) error {
		var text string
		if err := json.UnmarshalDecode(in, &text); err != nil {
			return err
		}
		var err error
		*d, err = time.ParseDuration(text)
		return err
	})),
	json.RejectUnknownMembers(true),
)

// WriteClosure puts a closure into a simulated cache.
func WriteClosure(cacheDir, base string, c Closure) error {
	if _, err := nixops.StorePath(base); err != nil {
		return err
	}
	return writeJSON(filepath.Join(cacheDir, base+".json"), c)
}

func readClosure(dir, base string) (Closure, error) {
	var c Closure
	err := readJSON(filepath.Join(dir, base+".json"), &c)
	return c, err
}

const maxSimFile = 4 << 20 // bytes

func readJSON(path string, v any) error {
	data, err := disk.Read(path, maxSimFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v, durations); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v, durations, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return disk.ReplaceVolatile(path, data, 0o600)
}
