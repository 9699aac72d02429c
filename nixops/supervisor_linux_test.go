package nixops

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// A /run that a release has filled keeps no command from running, nor its end from being recorded.
func TestUnitsRunWhereNothingCanBeWritten(t *testing.T) {
	for name, fill := range map[string]func(t *testing.T, dir string){
		"bytes": func(t *testing.T, dir string) {
			file, err := os.Create(dir + "/filler")
			for err == nil {
				_, err = file.Write(make([]byte, 4096))
			}
			file.Close()
		},
		"files": func(t *testing.T, dir string) {
			for i := 0; os.WriteFile(dir+"/filler-"+strconv.Itoa(i), nil, 0o600) == nil; i++ {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, elsewhere := t.TempDir(), t.TempDir()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,nr_inodes=64"); err != nil {
				t.Skipf("no file system can be mounted here: %v", err)
			}
			t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
			f := unitFiles{dir}
			if err := f.script("unit", 0, []string{"/bin/sh", "-c", ": >" + elsewhere + "/ran; exit 7"}, nil); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			cmd := exec.CommandContext(t.Context(), "/bin/sh", f.path("unit", "sh"))
			if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("%v: %s", cmd.ProcessState, out)
			}
			if _, err := os.Stat(elsewhere + "/ran"); err != nil {
				t.Error(err)
			}
			if state, err := f.ended("unit"); err != nil || state.Phase != UnitFinished || state.Exit.Code != 7 {
				t.Errorf("the record says %+v, %v", state, err)
			}
		})
	}
}
