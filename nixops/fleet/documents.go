package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"nixfleet/pki"
)

// Documents reads the files of one release as they stand, by their names: the
// fleet, its lists, and of each channel the manifest and the head. Nothing is
// verified; manifests of older releases are left out.
func Documents(fsys fs.FS) (map[string][]byte, error) {
	docs := map[string][]byte{}
	add := func(name string) error {
		body, err := readFile(fsys, name, pki.MaxDocument)
		if err != nil {
			return err
		}
		sig, err := readFile(fsys, name+SignatureSuffix, maxSignatureFile)
		if err != nil {
			return err
		}
		docs[name], docs[name+SignatureSuffix] = body, sig
		return nil
	}
	if err := add(FleetName); err != nil {
		return nil, err
	}
	canonical, err := pki.Canonicalize(docs[FleetName])
	if err != nil {
		return nil, fmt.Errorf("release: %s: %w", FleetName, err)
	}
	f, err := ParseFleet(canonical)
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	optional := []string{RevocationsName, NoncesName}
	for channel := range f.Channels {
		m, any, err := Project(f, pki.HashHex(canonical), channel)
		if err != nil {
			return nil, fmt.Errorf("release: %w", err)
		}
		if !any {
			continue
		}
		id, _, err := RolloutID(m)
		if err != nil {
			return nil, fmt.Errorf("release: %w", err)
		}
		optional = append(optional, ManifestName(id), HeadName(channel))
	}
	for _, name := range optional {
		if err := add(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return docs, nil
}

const (
	// maxHead and maxList bound documents that are small by their nature, in bytes, so that an unverified one
	// costs little.
	maxHead = 1 << 20
	maxList = 16 << 20
)

// MaxSize is the largest size of a file of a release that is read, in bytes, by its name.
func MaxSize(name string) int {
	switch {
	case strings.HasSuffix(name, SignatureSuffix):
		return maxSignatureFile
	case strings.HasPrefix(name, HeadsDir+"/"):
		return maxHead
	case name == RevocationsName || name == NoncesName:
		return maxList
	}
	return pki.MaxDocument
}
