package protocol

import "testing"

// BenchmarkDecodeCheckin reads one check-in, of which a control plane with
// 10,000 a second on one core can afford some ten microseconds.
func BenchmarkDecodeCheckin(b *testing.B) {
	doc := example(b, "checkin")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeStrict(doc, new(CheckinRequest)); err != nil {
			b.Fatal(err)
		}
	}
}
