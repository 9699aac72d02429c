//go:build !cgo

package store

// kindOf knows nothing: without cgo, as in an agent that is built for another system, there is no SQLite.
func kindOf(error) error { return nil }
