package fleet

import (
	"testing"
	"time"
)

// BenchmarkLoadRelease10000 verifies and loads a whole release of 10,000 hosts
// with head and lists; the aim is under 200 ms.
func BenchmarkLoadRelease10000(b *testing.B) {
	d := newDraft(b)
	d.fleet = largeFleet(b, 10_000)
	files := d.sign()
	o := LoadOptions{Trust: trustOf(d.key), Now: signingTime.Add(time.Minute), Window: month}
	b.SetBytes(int64(len(files[FleetName].Data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := LoadRelease(files, o); err != nil {
			b.Fatal(err)
		}
	}
}
