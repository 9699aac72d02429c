package cp

import (
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/rs/zerolog"
)

// traced adds the trace and the span of a caller that sent a traceparent (W3C Trace Context) to a line of the log. One
// that is not well-formed is as none: callers choose it.
func traced(r *http.Request) func(*zerolog.Event) {
	return func(line *zerolog.Event) {
		if trace, span, ok := traceOf(r.Header.Values("Traceparent")); ok {
			line.Str("trace_id", trace).Str("span_id", span)
		}
	}
}

// traceOf reads VERSION-TRACE-SPAN-FLAGS. A version to come may have more behind it.
func traceOf(values []string) (trace, span string, ok bool) {
	if len(values) != 1 || len(values[0]) > 512 {
		return "", "", false
	}
	parts := strings.Split(values[0], "-")
	if len(parts) < 4 || parts[0] == "ff" || parts[0] == "00" && len(parts) != 4 {
		return "", "", false
	}
	for i, length := range []int{2, 32, 16, 2} {
		if _, err := hex.DecodeString(parts[i]); err != nil || len(parts[i]) != length ||
			parts[i] != strings.ToLower(parts[i]) {
			return "", "", false
		}
	}
	none := strings.Trim(parts[1], "0") == "" || strings.Trim(parts[2], "0") == ""
	return parts[1], parts[2], !none
}
