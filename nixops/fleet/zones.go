package fleet

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// zones has a line for each rule of the time zone database (2025c, the public domain): the rule that is in force in
// its zones from now on, as POSIX writes it (TZ of tzset), then the zones. It is a part of the executable, so that a
// window opens at the same moment for CI, a plan and each control plane, whatever their machines have installed.
//
//go:embed zones.txt
var zones string

// ErrZone means that a time zone is not known.
var ErrZone = errors.New("not a time zone of the database that is built in")

// Zone finds a time zone by its name, such as Europe/Berlin; "" is UTC. It knows present rules only: times before them
// are told by the same rule.
func Zone(name string) (*time.Location, error) {
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	for line := range strings.Lines(zones) {
		if rule, names, _ := strings.Cut(strings.TrimSpace(line), " "); !strings.ContainsAny(name, " \n") &&
			strings.Contains(" "+names+" ", " "+name+" ") {
			return time.LoadLocationFromTZData(name, zoneFile(rule))
		}
	}
	return nil, fmt.Errorf("%.80q is %w", name, ErrZone)
}

// zoneFile is a file of zic(8) that holds one rule and no transition (RFC 9636: the header and data of version 1, then
// those of version 2 with the rule as their footer).
func zoneFile(rule string) []byte {
	const kinds, characters = 1, 4
	var block []byte
	block = append(block, "TZif2"...)
	block = append(block, make([]byte, 15)...)
	for _, count := range []uint32{0, 0, 0, 1, kinds, characters} { // the one transition is below
		block = binary.BigEndian.AppendUint32(block, count)
	}
	file := append([]byte{}, block...)
	file = append(file, make([]byte, 4+1+6*kinds+characters)...)
	file = append(file, block...)
	file = binary.BigEndian.AppendUint64(file, 1<<63) // the beginning of time
	file = append(file, make([]byte, 1+6*kinds)...)
	file = append(file, "LMT\x00"...)
	return append(file, "\n"+rule+"\n"...)
}
