package loader

import (
	"bytes"
	"debug/pe"
	"fmt"
	"strings"
	"unicode/utf8"

	"nixfleet/nixops/disk"
)

// maxSection bounds a section of text in an image, in bytes.
const maxSection = 64 << 10

// readImage reads an entry from a unified kernel image: what systemd-stub or lanzaboote's stub will start.
func readImage(file string) (Entry, error) {
	f, err := disk.Open(file)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	image, err := pe.NewFile(f)
	if err != nil {
		return Entry{}, fmt.Errorf("%s is not an EFI image: %w", file, err)
	}
	release, err := section(image, ".osrel")
	if err != nil || release == "" {
		return Entry{}, fmt.Errorf("%s has no section .osrel that can be read: %w", file, err)
	}
	options, err := section(image, ".cmdline")
	if err != nil {
		return Entry{}, fmt.Errorf("%s: %w", file, err)
	}
	os := assignments(release)
	e := Entry{Closure: Closure(options)}
	e.SortKey = firstOf(os["IMAGE_ID"], os["ID"])
	e.Version = firstOf(os["IMAGE_VERSION"], os["VERSION"], os["VERSION_ID"], os["BUILD_ID"])
	// Lanzaboote's stub holds the files' paths in the place of their contents, beside their hashes.
	for _, names := range [][3]string{{".linux", ".linuxh", "kernel"}, {".kernelp", ".kernelh", "kernel"},
		{".initrd", ".initrdh", "initrd"}, {".initrdp", ".initrdh", "initrd"}} {
		if image.Section(names[0]) == nil || image.Section(names[1]) == nil {
			continue
		}
		text, err := section(image, names[0])
		if err != nil {
			return Entry{}, fmt.Errorf("%s: %w", file, err)
		}
		if names[2] == "kernel" {
			e.Kernel = slashes(text)
		} else {
			e.Initrds = append(e.Initrds, slashes(text))
		}
	}
	return e, nil
}

// section is the text of a section, "" if the image does not have it.
func section(image *pe.File, name string) (string, error) {
	s := image.Section(name)
	if s == nil {
		return "", nil
	}
	size := min(s.VirtualSize, s.Size)
	if s.VirtualSize == 0 {
		size = s.Size
	}
	if size > maxSection {
		return "", fmt.Errorf("section %s has %d bytes", name, size)
	}
	data := make([]byte, size)
	if _, err := s.ReadAt(data, 0); err != nil {
		return "", fmt.Errorf("section %s: %w", name, err)
	}
	data = bytes.TrimRight(data, "\x00")
	if bytes.IndexByte(data, 0) >= 0 || !utf8.Valid(data) {
		return strings.Join(strings16(data), ""), nil
	}
	return string(data), nil
}

// assignments reads the lines of os-release(5).
func assignments(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		values[name] = value
	}
	return values
}

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// slashes writes a path of EFI with slashes.
func slashes(path string) string { return strings.ReplaceAll(strings.TrimSpace(path), `\`, "/") }
