package loader

import (
	"debug/pe"
	"runtime"
	"strings"

	"nixfleet/nixops/disk"
)

// architecture is the word of `architecture` lines for this machine.
var architecture = map[string]string{"amd64": "x64", "arm64": "aa64", "386": "ia32", "arm": "arm",
	"riscv64": "riscv64", "loong64": "loongarch64"}[runtime.GOARCH]

// magic returns the words between the marks "#### LoaderInfo: systemd-boot 257.13 ####" in a loader's image; bootctl
// finds the version of an installed loader in the same way. It is "" for any other file.
func magic(file string) string {
	f, err := disk.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	image, err := pe.NewFile(f)
	if err != nil {
		return ""
	}
	text, err := section(image, ".sdmagic")
	if err != nil {
		return ""
	}
	_, rest, begins := strings.Cut(text, "#### LoaderInfo: ")
	words, _, ends := strings.Cut(rest, " ####")
	if !begins || !ends {
		return ""
	}
	return words
}
