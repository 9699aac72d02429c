package loader

import "path"

// Blessing is what the file of a counted entry says of the boot that the loader started with it. systemd-bless-boot
// takes the counter out of the file's name once boot-complete.target was reached.
type Blessing string

// The words for blessings.
const (
	NotToBless   Blessing = ""         // the loader does not count this boot
	NotBlessed   Blessing = "awaited"  // the file still has its counter
	Blessed      Blessing = "blessed"  // the file has no counter any more
	BlessUnknown Blessing = "not seen" // no partition has the file with or without the counter
)

// Blessing looks for the counted file of this boot in every partition, because the variable does not name one. The
// second result names that file.
func (v Variables) Blessing(root string) (Blessing, string) {
	if v.CountPath == "" {
		return NotToBless, ""
	}
	counted := slashes(v.CountPath)
	_, name := counterOf(path.Base(counted))
	for _, dir := range partitions(root) {
		switch {
		case exists(path.Join(root+dir, counted)):
			return NotBlessed, path.Join(dir, counted)
		case exists(path.Join(root+dir, path.Dir(counted), name)):
			return Blessed, path.Join(dir, path.Dir(counted), name)
		}
	}
	return BlessUnknown, counted
}

// UsedUp returns the closures whose entries the loader has no tries left for, in its order. A closure that another
// entry starts as well is not among them.
func (s State) UsedUp() []string {
	if s.Menu == nil {
		return nil
	}
	var closures []string
	for _, e := range s.Menu.Entries {
		// The first entry of a closure is the last to be used up.
		if first := s.EntryOf(e.Closure); first != nil && first.is(&e) && e.spent() {
			closures = append(closures, e.Closure)
		}
	}
	return closures
}
