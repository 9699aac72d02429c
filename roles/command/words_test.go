package command

import "testing"

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"a b": "'a b'", "it's": `'it'\''s'`, "~/.ssh/id": "~/.ssh/id",
		"~/a b": "~/'a b'", "": "''"} {
		if got := ShellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
