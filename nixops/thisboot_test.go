package nixops

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"nixfleet/nixops/loader"
)

// answering is a systemd that knows the given units.
type answering struct {
	supervisor
	states map[string]string
}

func (a answering) activeState(_ context.Context, unit string) (string, error) {
	if state, ok := a.states[unit]; ok {
		return state, nil
	}
	return "not-found", nil
}

// TestThisBoot: the file of the entry that was booted says whether the boot was blessed, on whichever partition it is;
// where it has its counter still, systemd's units say whether that is to change.
func TestThisBoot(t *testing.T) {
	const counted = "boot/loader/entries/nixos-x+2-1.conf"
	for name, c := range map[string]struct {
		path   string // LoaderBootCountPath
		files  []string
		states map[string]string
		want   ThisBoot
	}{
		"nothing is counted": {"", nil, map[string]string{"default.target": "active"}, ThisBoot{Over: true}},
		"no such target":     {"", nil, nil, ThisBoot{Over: true}},
		"not over":           {"", nil, map[string]string{"default.target": "inactive"}, ThisBoot{}},
		"blessed": {`\loader\entries\nixos-x+2-1.conf`, []string{"boot/loader/entries/nixos-x.conf"},
			map[string]string{"default.target": "active"}, ThisBoot{Over: true, Blessing: Blessed}},
		"blessed on the ESP": {`\EFI\Linux\nixos-x+2-1.efi`,
			[]string{"boot/loader/entries/y.conf", "efi/EFI/Linux/nixos-x.efi"}, nil, ThisBoot{Over: true, Blessing: Blessed}},
		"waits": {`\loader\entries\nixos-x+2-1.conf`, []string{counted},
			map[string]string{"default.target": "active", "systemd-bless-boot.service": "inactive",
				"boot-complete.target": "inactive"},
			ThisBoot{Over: true, Blessing: BlessingWaits, Why: "boot-complete.target is inactive"}},
		"failed": {`\loader\entries\nixos-x+2-1.conf`, []string{counted},
			map[string]string{"systemd-bless-boot.service": "failed", "boot-complete.target": "active"},
			ThisBoot{Over: true, Blessing: BlessingFailed, Why: "systemd-bless-boot.service failed"}},
		"ended well and did nothing": {`\loader\entries\nixos-x+2-1.conf`, []string{counted},
			map[string]string{"systemd-bless-boot.service": "active", "boot-complete.target": "active"},
			ThisBoot{Over: true, Blessing: BlessingFailed, Why: "/boot/loader/entries/nixos-x+2-1.conf still has"}},
		"used up and never blessed": {`\loader\entries\nixos-x+0-3.conf`, []string{"boot/loader/entries/nixos-x+0-3.conf"},
			map[string]string{"systemd-bless-boot.service": "failed"},
			ThisBoot{Over: true, Blessing: BlessingFailed, Why: "still has its boot counter"}},
		"partition is not mounted": {`\loader\entries\nixos-x+2-1.conf`, nil,
			map[string]string{"systemd-bless-boot.service": "failed"},
			ThisBoot{Over: true, Blessing: BlessingFailed, Why: "on no partition that is mounted"}},
		"nothing here blesses": {`\loader\entries\nixos-x+2-1.conf`, []string{counted}, nil,
			ThisBoot{Over: true, Why: "this system has no systemd-bless-boot.service"}},
	} {
		root := t.TempDir()
		write := func(name, text string) {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range c.files {
			write(file, "")
		}
		if c.path != "" {
			value := []byte{6, 0, 0, 0}
			for _, unit := range utf16.Encode([]rune(c.path + "\x00")) {
				value = binary.LittleEndian.AppendUint16(value, unit)
			}
			write(loader.VariableDir+"/LoaderBootCountPath-"+loader.Vendor, string(value))
		}
		m := &machine{root: root, platform: "linux", super: answering{states: c.states}}
		got, err := m.ThisBoot(t.Context())
		if err != nil || got.Over != c.want.Over || got.Blessing != c.want.Blessing ||
			!strings.Contains(got.Why, c.want.Why) || got.Why != "" && c.want.Why == "" {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}
