package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"

	"nixfleet/nixops/disk"
)

// VariableDir and Vendor name the files of the Boot Loader Interface's variables: DIR/NAME-VENDOR
// (https://systemd.io/BOOT_LOADER_INTERFACE). Such a file has four bytes of attributes, then the value.
const (
	VariableDir = "/sys/firmware/efi/efivars"
	Vendor      = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

// maxVariable bounds a variable in bytes: LoaderEntries lists the ids of all entries.
const maxVariable = 64 << 10

// Variables are what boot loader and system tell each other.
type Variables struct {
	OneShot    string   // LoaderEntryOneShot: pattern for the next boot only
	Preferred  string   // LoaderEntryPreferred: pattern before loader.conf's `preferred`
	Default    string   // LoaderEntryDefault: pattern before loader.conf's `default`
	LastBooted string   // LoaderEntryLastBooted: what @saved means
	Selected   string   // LoaderEntrySelected: id of the entry that this boot started
	Entries    []string // LoaderEntries: ids of the menu of this boot
	Info       string   // LoaderInfo: name and version of the loader of this boot
	Features   uint64   // LoaderFeatures
	CountPath  string   // LoaderBootCountPath: counted file of the entry that this boot started, in its partition
	Trouble    string   // why some of them are not known
}

// ReadVariables reads the variables of the machine below root. Without EFI all are empty.
func ReadVariables(root string) Variables {
	var v Variables
	read := func(name string) []byte {
		data, err := disk.ReadLinked(path.Join(root, VariableDir, name+"-"+Vendor), maxVariable)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, os.ErrInvalid) {
			v.Trouble = fmt.Sprintf("the EFI variable %s cannot be read: %v", name, err)
		}
		return data[min(4, len(data)):]
	}
	for name, to := range map[string]*string{
		"LoaderEntryOneShot": &v.OneShot, "LoaderEntryPreferred": &v.Preferred, "LoaderEntryDefault": &v.Default,
		"LoaderEntryLastBooted": &v.LastBooted, "LoaderEntrySelected": &v.Selected, "LoaderInfo": &v.Info,
		"LoaderBootCountPath": &v.CountPath,
	} {
		if words := strings16(read(name)); len(words) > 0 {
			*to = words[0]
		}
	}
	v.Entries = strings16(read("LoaderEntries"))
	if features := read("LoaderFeatures"); len(features) >= 8 {
		v.Features = binary.LittleEndian.Uint64(features)
	}
	return v
}

// strings16 decodes texts of UTF-16, each of which a zero ends.
func strings16(data []byte) []string {
	words := make([]uint16, 0, len(data)/2)
	for ; len(data) >= 2; data = data[2:] {
		words = append(words, binary.LittleEndian.Uint16(data))
	}
	var texts []string
	for text := range strings.SplitSeq(string(utf16.Decode(words)), "\x00") {
		if text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

var systemdBoot = regexp.MustCompile(`systemd-boot (\d+)(?:\.(\d+))?`)

// release is a version of systemd-boot. The zero value is not known.
type release struct{ major, minor int }

func releaseOf(info string) release {
	m := systemdBoot.FindStringSubmatch(info)
	if m == nil {
		return release{}
	}
	major, err := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2]) // empty is 0
	if err != nil {
		return release{}
	}
	return release{major, minor}
}
