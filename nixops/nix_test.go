package nixops

import (
	"errors"
	"os/exec"
	"testing"
)

// The words are those of Nix 2.26 with caches that compress.
func TestWordsOfDamagedDownloads(t *testing.T) {
	for said, want := range map[string]error{
		"error: failed to read compressed data (Lzma library error:  No progress is possible)": ErrTruncated,
		"error: failed to read compressed data (Truncated zstd input)":                         ErrTruncated,
		"error: Failed to open archive (truncated bzip2 input)":                                ErrTruncated,
		"error: failed to read compressed data (Lzma library error: Corrupted input data)":     ErrUnsigned,
		"error: failed to read compressed data (Zstd decompression failed: Data corruption)":   ErrUnsigned,
	} {
		err := classify(&commandError{name: "nix-store", stderr: said, err: &exec.ExitError{}})
		if !errors.Is(err, want) {
			t.Errorf("%q is %v", said, err)
		}
	}
}
