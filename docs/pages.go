// Package docs holds the pages that are part of the manual as well, so that the manual is that of the executable.
package docs

import _ "embed" // for the pages

// Formats is docs/formats.md.
//
//go:embed formats.md
var Formats string

// Reasons is docs/reasons.md.
//
//go:embed reasons.md
var Reasons string

// Recovery is docs/recovery.md.
//
//go:embed recovery.md
var Recovery string

// Troubleshooting is docs/troubleshooting.md.
//
//go:embed troubleshooting.md
var Troubleshooting string
