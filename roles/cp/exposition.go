package cp

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// registry holds the metrics of the control plane and writes them in the text format of Prometheus, version 0.0.4. It
// is all that the control plane needs of a client library, whose formats and protocol buffers are a tenth of the
// executable that every host carries.
type registry struct {
	mu       sync.Mutex
	families map[string]metric
}

func newRegistry() *registry { return &registry{families: map[string]metric{}} }

// The kinds of metrics.
const (
	kindCounter = "counter"
	kindGauge   = "gauge"
)

// family is one metric with all its label values.
type family struct {
	name, help, kind string
	labels           []string
	collect          func(emit func(value float64, labels ...string)) // what is counted when it is asked for; may be nil

	mu      sync.Mutex
	samples map[string]*sample // by the label values, joined
}

// sample is one number.
type sample struct {
	values []string // of the labels, in their order
	bits   atomic.Uint64
}

// metric writes itself in the format.
type metric interface{ write(out *bytes.Buffer) }

// add makes a metric.
func (r *registry) add(f *family) *family {
	f.samples = map[string]*sample{}
	r.addMetric(f.name, f)
	return f
}

// addMetric adds one. A name that is there already is an error of the program.
func (r *registry) addMetric(name string, m metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.families[name] != nil {
		panic("metric " + name + " is registered twice")
	}
	r.families[name] = m
}

// WithLabelValues is the number of these label values, in the order of the labels. It is 0 at first.
func (f *family) WithLabelValues(values ...string) *sample {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("metric %s has %d labels, not %d", f.name, len(f.labels), len(values)))
	}
	key := strings.Join(values, "\xff")
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.samples[key]
	if s == nil {
		s = &sample{values: slices.Clone(values)}
		f.samples[key] = s
	}
	return s
}

// Set changes a gauge.
func (s *sample) Set(v float64) { s.bits.Store(math.Float64bits(v)) }

// Inc counts one more.
func (s *sample) Inc() {
	for {
		old := s.bits.Load()
		if s.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+1)) {
			return
		}
	}
}

// ServeHTTP writes every metric, sorted by name and by label values.
func (r *registry) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	var families []metric
	for _, name := range slices.Sorted(maps.Keys(r.families)) {
		families = append(families, r.families[name])
	}
	r.mu.Unlock()
	var out bytes.Buffer
	for _, f := range families {
		f.write(&out)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores")
	// The caller may have gone, which nobody needs to know.
	_, _ = w.Write(out.Bytes())
}

// write writes a metric; one without a number is left out.
func (f *family) write(out *bytes.Buffer) {
	lines := map[string]float64{}
	if f.collect != nil {
		f.collect(func(value float64, values ...string) { lines[f.line(values)] = value })
	}
	f.mu.Lock()
	for _, s := range f.samples {
		lines[f.line(s.values)] = math.Float64frombits(s.bits.Load())
	}
	f.mu.Unlock()
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", f.name, escaped(f.help, false), f.name, f.kind)
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		out.WriteString(line + " " + strconv.FormatFloat(lines[line], 'g', -1, 64) + "\n")
	}
}

// line is the name with the labels, sorted by their names.
func (f *family) line(values []string) string {
	pairs := make([]string, len(values))
	for i, value := range values {
		pairs[i] = f.labels[i] + `="` + escaped(value, true) + `"`
	}
	if len(pairs) == 0 {
		return f.name
	}
	slices.Sort(pairs)
	return f.name + "{" + strings.Join(pairs, ",") + "}"
}

// escaped is a text as the format writes it, in a line of help or, quoted, as the value of a label.
func escaped(text string, quoted bool) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if quoted {
		return labelEscapes.Replace(text)
	}
	return helpEscapes.Replace(text)
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
