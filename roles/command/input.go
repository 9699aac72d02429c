package command

import (
	"fmt"
	"io"
	"os"
)

// SmallFile bounds keys, tokens, certificates and signatures, in bytes; documents are bounded by pki.MaxDocument.
const SmallFile = 1 << 20

// ReadFile reads a file that was named on the command line, of at most limit bytes. "-" is standard input, and what a
// shell substitutes for a pipe is read as well.
func ReadFile(path string, limit int64) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, limit)
	}
	return data, nil
}
