package command

import (
	"strings"
	"testing"
	"time"
)

// TestAFrameFitsItsScreen: a line more, or a column more, would scroll the terminal and flicker.
func TestAFrameFitsItsScreen(t *testing.T) {
	p := Palette(true)
	text := p.Paint(Red, strings.Repeat("x", 50)) + "\nshort\n" + strings.Repeat("line\n", 30)
	got := frame(text, 20, 10)
	rows := strings.Split(got, "\r\n")
	if len(rows) != 10 {
		t.Errorf("%d rows, want 10", len(rows))
	}
	for _, row := range rows {
		row = strings.NewReplacer("\x1b[H", "", "\x1b[K", "", "\x1b[J", "").Replace(row)
		if visible(row) > 20 {
			t.Errorf("%q is %d wide", row, visible(row))
		}
	}
	if !strings.HasPrefix(got, "\x1b[H\x1b[31m") || strings.Contains(got[:len(got)-3], "\x1b[J") {
		t.Errorf("it clears in front of what it writes: %q", got)
	}
	if got := cut(p.Paint(Green, "abcdef"), 4); got != "\x1b[32mabc…\x1b[0m" {
		t.Errorf("cut to %q", got)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59 * time.Minute: "59m", 47 * time.Hour: "47h",
		49 * time.Hour: "2d",
	} {
		if got := Age(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
