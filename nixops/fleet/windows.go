package fleet

import (
	"fmt"
	"time"
)

// Maintenance says when hosts of a channel may be given another closure. A channel without it: at any time.
type Maintenance struct {
	Windows []MaintenanceWindow `json:"windows" shape:"R"`
	// TimeZone is the place whose clocks open the windows; "" is UTC.
	TimeZone string `json:"timeZone,omitzero" shape:"O"`
}

// MaintenanceWindow opens whenever its expression comes true (Calendar), and stays open for so many minutes.
type MaintenanceWindow struct {
	Opens   string `json:"opens" shape:"R"`
	Minutes uint32 `json:"minutes" shape:"R"`
}

// A window is long enough for a host to be told, to switch and to be asked, and not longer than a month.
const (
	LeastWindow = 10 // minutes
	MostWindow  = 31 * 24 * 60
)

// maxWindows bounds the windows of a channel.
const maxWindows = 32

// Windows are the maintenance windows of a channel, read.
type Windows struct {
	list  []window
	place *time.Location
}

type window struct {
	opens *Calendar
	long  time.Duration
}

// Phase is a stretch of time in which the windows are open, or closed. It ends when Until is reached; zero: never.
// A closed one began with the end of the window before, and From is zero where there was none.
type Phase struct {
	Open        bool
	From, Until time.Time
}

// Read parses the windows; nil has none.
func (m *Maintenance) Read() (*Windows, error) {
	if m == nil {
		return nil, nil
	}
	if len(m.Windows) == 0 || len(m.Windows) > maxWindows {
		return nil, fmt.Errorf("windows: %d of them; give 1 to %d", len(m.Windows), maxWindows)
	}
	place, err := Zone(m.TimeZone)
	if err != nil {
		return nil, fmt.Errorf("timeZone: %w", err)
	}
	w := &Windows{place: place}
	for i, declared := range m.Windows {
		opens, err := ParseCalendar(declared.Opens)
		if err != nil {
			return nil, fmt.Errorf("window %d: %w", i, err)
		}
		if declared.Minutes < LeastWindow || declared.Minutes > MostWindow {
			return nil, fmt.Errorf("window %d: %d minutes; give %d to %d", i, declared.Minutes, LeastWindow, MostWindow)
		}
		w.list = append(w.list, window{opens, Minutes(declared.Minutes)})
	}
	return w, nil
}

// At is the phase that a moment belongs to. Windows that overlap or meet are one.
func (w *Windows) At(now time.Time) Phase {
	var p Phase
	for _, x := range w.list {
		if from := x.opens.Last(now, w.place); !from.IsZero() {
			end := from.Add(x.long)
			switch open := end.After(now); {
			case open && (!p.Open || end.After(p.Until)):
				p = Phase{Open: true, From: from, Until: end}
			case !open && !p.Open && end.After(p.From):
				p.From = end
			}
		}
	}
	if p.Open {
		p.Until = w.prolonged(p.Until)
		return p
	}
	for _, x := range w.list {
		if next := x.opens.Next(now, w.place); !next.IsZero() && (p.Until.IsZero() || next.Before(p.Until)) {
			p.Until = next
		}
	}
	return p
}

// prolonged is the end of windows that follow one another, as far as a month ahead: who asks again then is told more.
func (w *Windows) prolonged(end time.Time) time.Time {
	for most := end.Add(MostWindow * time.Minute); end.Before(most); {
		longer := end
		for _, x := range w.list {
			if next := x.opens.Last(end, w.place); !next.IsZero() && next.Add(x.long).After(longer) {
				longer = next.Add(x.long)
			}
		}
		if !longer.After(end) {
			return end
		}
		end = longer
	}
	return end
}
