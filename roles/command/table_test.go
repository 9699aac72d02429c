package command

import (
	"bytes"
	"testing"
)

func TestTableIgnoresColoursAndControls(t *testing.T) {
	for name, c := range map[string]struct {
		rows [][]string
		want string
	}{
		"made plain before": {
			[][]string{{"A", "B"}, {Palette(true).Paint(Red, "xx"), "é"}, {"1234", Plain("a\x1b[2Jb\nc\u202ed")}},
			"A     B\n\x1b[31mxx\x1b[0m    é\n1234  a [2Jb c d\n",
		},
		"made plain by the table": {
			[][]string{{"a\x1b[2Jb\nc\u202ed", "x"}, {"\x1b]0;title\a\x1b[8mhidden\x1b[0m", "\x9b\x7f"}},
			"a [2Jb c d            x\n" + " ]0;title  [8mhidden\x1b[0m  \ufffd\n",
		},
	} {
		var out bytes.Buffer
		if err := Table(&out, c.rows); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want {
			t.Errorf("%s: got %q, want %q", name, out.String(), c.want)
		}
	}
	if got := Palette(false).Paint(Red, "xx"); got != "xx" {
		t.Errorf("colour without a terminal: %q", got)
	}
}

func TestWrapBreaksAtSpaces(t *testing.T) {
	const width = 30
	for text, want := range map[string]string{
		"short": "short",
		"web-02 waits: the rollout of channel stable stopped": "web-02 waits: the rollout of \n  " +
			"channel stable stopped",
		"a-word-that-is-longer-than-the-whole-line is kept": "a-word-that-is-longer-than-the-whole-line \n  is kept",
		"look around with\n  nixfleet status --config /a/long/path/to/config.toml": "look around with\n  nixfleet status " +
			"--config /a/long/path/to/config.toml",
	} {
		if got := Wrap(text, width, "  "); got != want {
			t.Errorf("wrapped %q to\n%s\nwant\n%s", text, got, want)
		}
	}
}
