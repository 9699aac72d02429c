package protocol

import "testing"

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 10, ""}, {"abc", 3, "abc"}, {"abcdef", 5, "a …"}, {"a\x1b[31mb\u202ec\td\n", 20, "a[31mbc d "},
		{"äöüäöü", 7, "ä …"}, {"ab\xff", 9, "ab"}, {"abcdef", 2, "ab"},
	} {
		if got := Clip(c.in, c.limit); got != c.want || len(got) > c.limit {
			t.Errorf("Clip(%q, %d) is %q", c.in, c.limit, got)
		}
	}
}
