package loader

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"slices"
)

// testImage makes an EFI image with sections, and without code.
func testImage(sections map[string]string) string {
	var names []string
	for name := range sections {
		names = append(names, name)
	}
	slices.Sort(names)
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a buffer takes all
	b.WriteString("MZ")
	b.Write(make([]byte, 58))
	put(uint32(64))
	b.WriteString("PE\x00\x00")
	put(pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: uint16(len(names)),
		SizeOfOptionalHeader: uint16(binary.Size(pe.OptionalHeader64{}))})
	put(pe.OptionalHeader64{Magic: 0x20b, NumberOfRvaAndSizes: 16})
	at := uint32(b.Len() + len(names)*binary.Size(pe.SectionHeader32{}))
	for _, name := range names {
		h := pe.SectionHeader32{VirtualSize: uint32(len(sections[name])), SizeOfRawData: uint32(len(sections[name])),
			PointerToRawData: at}
		copy(h.Name[:], name)
		put(h)
		at += h.SizeOfRawData
	}
	for _, name := range names {
		b.WriteString(sections[name])
	}
	return b.String()
}
