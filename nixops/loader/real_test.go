package loader

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRealBoots boots the trees of the table with real systemd-boots, under qemu without KVM and with OVMF. A program
// of forty lines stands for the kernel: it writes down what it was started with, and ends the machine. The machine's
// own loader boots all rows; the loaders in the directory that NIXFLEET_TEST_LOADERS names, which .ci/loaders.sh fills,
// boot those on which versions differ.
func TestRealBoots(t *testing.T) {
	newer := os.Getenv("NIXFLEET_TEST_LOADERS")
	if newer == "" {
		t.Skip("NIXFLEET_TEST_LOADERS does not name a directory, so no real loader boots (.ci/run loaders)")
	}
	bench := newBench(t)
	own := "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	others, err := filepath.Glob(newer + "/*.efi")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append([]string{own}, others...) {
		version := magic(file)
		if version == "" {
			t.Fatalf("%s does not say which systemd-boot it is", file)
		}
		for _, b := range boots() {
			if file != own && (b.next == "" || b.next == b.old) {
				continue
			}
			t.Run(version+"/"+b.what, func(t *testing.T) {
				t.Parallel()
				s := Read(b.tree.write(t, strings.TrimPrefix(version, "systemd-boot ")))
				rules := s.Default
				if b.once {
					rules = s.Once
				}
				if started := bench.boot(t, b.tree, file); Closure(started) != rules.Closure || rules.Closure == "" {
					t.Errorf("it started %q; by the rules it is %q (%s)", started, rules.Closure, rules.Unknown)
				}
			})
		}
	}
}

// bench is what the machines of a test share.
type bench struct {
	kernel string // the program that stands for a kernel
	code   string // firmware
	vars   []byte // its empty store of variables
}

func newBench(t *testing.T) *bench {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "sgdisk", "mkfs.vfat", "mcopy", "gcc", "ld", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, err := os.Stat("/usr/sbin/" + tool); err != nil {
				t.Skipf("no %s, so no real loader boots", tool)
			}
		}
	}
	b := &bench{code: "/usr/share/OVMF/OVMF_CODE_4M.fd"}
	var err error
	if b.vars, err = os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd"); err != nil {
		t.Skipf("no OVMF, so no real loader boots: %v", err)
	}
	if _, err := os.Stat("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"); err != nil {
		t.Skipf("no systemd-boot: %v", err)
	}
	dir := t.TempDir()
	b.kernel = dir + "/kernel.efi"
	run(t, "gcc", "-O1", "-ffreestanding", "-fno-stack-protector", "-mno-red-zone", "-fno-asynchronous-unwind-tables",
		"-fcf-protection=none", "-fpie", "-c", "testdata/kernel.c", "-o", dir+"/kernel.o")
	run(t, "ld", "-static", "-nostdlib", "-T", "testdata/kernel.lds", "-o", dir+"/kernel.elf", dir+"/kernel.o")
	run(t, "objcopy", "-O", "efi-app-x86_64", dir+"/kernel.elf", b.kernel)
	return b
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin")
	if _, err := exec.LookPath(name); err != nil {
		c.Path, c.Err = "/usr/sbin/"+name, nil
	}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// boot starts a machine with the tree and returns the command line of what its loader started.
func (b *bench) boot(t *testing.T, tree tree, loaderFile string) string {
	t.Helper()
	// Not a directory named after the test: qemu ends a path at a comma.
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	disk := b.disk(t, tree, loaderFile, dir)
	vars := slices.Clone(b.vars)
	for name, value := range tree.variables {
		vars = withVariable(t, vars, name, []byte(variableValue(value))[4:])
	}
	write(t, dir, map[string]string{"vars.fd": string(vars)})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256",
		"-no-reboot", "-nodefaults", "-display", "none", "-monitor", "none", "-net", "none",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+b.code,
		"-drive", "if=pflash,format=raw,unit=1,file="+dir+"/vars.fd",
		"-drive", "if=none,id=d,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=d,bootindex=0",
		"-debugcon", "file:"+dir+"/started", "-global", "isa-debugcon.iobase=0xe9",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	out, err := c.CombinedOutput()
	// The kernel's way to end the machine makes qemu exit with 1.
	if failed := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &failed) || failed.ExitCode() != 1) {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	started, err := os.ReadFile(dir + "/started")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`\[(.*)\]`).FindSubmatch(started)
	if m == nil {
		t.Fatalf("nothing was started: %q\n%s", started, out)
	}
	return string(m[1])
}

// disk makes an image with the tree's ESP, which is what the table has below boot, and what it has below efi as
// XBOOTLDR.
func (b *bench) disk(t *testing.T, tree tree, loaderFile, dir string) string {
	t.Helper()
	kernel, err := os.ReadFile(b.kernel)
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile(loaderFile)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"boot/EFI/BOOT/BOOTX64.EFI": string(loader), "efi/EFI/nixos/k.efi": string(kernel),
		"efi/EFI/nixos/i.efi": "initrd", "efi/loader/empty": ""}
	for name, text := range tree.files {
		switch filepath.Base(name) {
		case "k.efi", "k11":
			text = string(kernel)
		case "i.efi":
			text = "initrd"
		case "loader.conf":
			text = regexp.MustCompile(`(?m)^timeout .*$`).ReplaceAllString(text, "") + "timeout 0\n"
		}
		files[name] = text
	}
	write(t, dir+"/tree", files)
	for name, sections := range tree.images {
		b.image(t, filepath.Join(dir, "tree", name), sections)
	}
	image := dir + "/disk.img"
	write(t, dir, map[string]string{"disk.img": ""})
	if err := os.Truncate(image, 110<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "-n", "1:2048:+64M", "-t", "1:ef00", "-n", "2:0:+30M", "-t", "2:ea00", image)
	for _, part := range []struct{ dir, at, blocks string }{{"boot", "2048", "65536"}, {"efi", "133120", "30720"}} {
		run(t, "mkfs.vfat", "-F", "16", "--offset", part.at, image, part.blocks)
		entries, err := filepath.Glob(dir + "/tree/" + part.dir + "/*")
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]string{"2048": "1048576", "133120": "68157440"}[part.at]
		run(t, "mcopy", append(append([]string{"-s", "-i", image + "@@" + at}, entries...), "::")...)
	}
	return image
}

// image makes a kernel with the sections of a unified image.
func (b *bench) image(t *testing.T, file string, sections map[string]string) {
	t.Helper()
	args := []string{}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]string{".osrel": "0x20000", ".cmdline": "0x30000"} {
		write(t, dir, map[string]string{name: sections[name]})
		args = append(args, "--add-section", name+"="+dir+"/"+name, "--change-section-vma", name+"="+at)
	}
	run(t, "objcopy", append(args, b.kernel, file)...)
}

// withVariable adds a variable of the boot loader to a firmware's store, in the form of EDK II's authenticated
// variables.
func withVariable(t *testing.T, store []byte, name string, value []byte) []byte {
	t.Helper()
	const first, header = 0x48 + 0x1c, 60
	at := first
	for binary.LittleEndian.Uint16(store[at:]) == 0x55aa {
		size := header + int(binary.LittleEndian.Uint32(store[at+36:])) + int(binary.LittleEndian.Uint32(store[at+40:]))
		at += (size + 3) &^ 3
	}
	name16 := []byte(variableValue(name))[4:]
	var b bytes.Buffer
	for _, v := range []any{uint16(0x55aa), uint8(0x3f), uint8(0), uint32(7), uint64(0), [16]byte{}, uint32(0),
		uint32(len(name16)), uint32(len(value)), [16]byte{0x82, 0xb0, 0x67, 0x4a, 0x4c, 0x0a, 0xcf, 0x41, 0xb6, 0xc7, 0x44,
			0x0b, 0x29, 0xbb, 0x8c, 0x4f}, name16, value} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len()-len(name16)-len(value) != header {
		t.Fatalf("the header has %d bytes", b.Len()-len(name16)-len(value))
	}
	copy(store[at:], b.Bytes())
	return store
}
