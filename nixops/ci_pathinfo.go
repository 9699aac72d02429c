package nixops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nix-community/go-nix/pkg/narinfo/signature"
	"github.com/nix-community/go-nix/pkg/nixhash"
)

const maxPathInfo = 1 << 30 // bytes; ten thousand paths take about 6 MB

// pathInfo is what `nix path-info --json` prints about a path.
type pathInfo struct {
	CA         *string  `json:"ca"`
	NarHash    string   `json:"narHash"`
	NarSize    uint64   `json:"narSize"`
	References []string `json:"references"`
	Signatures []string `json:"signatures"`
	// Only binary caches have URL and DownloadSize: where the NAR lies, and its bytes as they are kept there.
	URL          string `json:"url"`
	DownloadSize uint64 `json:"downloadSize"`
	// Versions of Nix before 2.19, and Lix, print a list of infos; only there are Path and Valid set.
	Path  string `json:"path"`
	Valid *bool  `json:"valid"`
}

// acceptedBy says whether Nix accepts the path if it trusts only these keys. A path that is addressed by its content
// needs no signature.
func (i *pathInfo) acceptedBy(path string, keys []signature.PublicKey) bool {
	return i.CA != nil && *i.CA != "" || i.signedBy(path, keys)
}

// signedBy says whether one of the keys made one of the path's signatures.
func (i *pathInfo) signedBy(path string, keys []signature.PublicKey) bool {
	hash, err := nixhash.ParseAny(i.NarHash, nil)
	if err != nil {
		return false
	}
	text := fmt.Sprintf("1;%s;%s;%d;%s", path, hash.Format(nixhash.NixBase32, true), i.NarSize,
		strings.Join(slices.Sorted(slices.Values(i.References)), ","))
	// Several keys may have the same name, so every signature is tried with every key.
	return slices.ContainsFunc(i.Signatures, func(written string) bool {
		sig, err := signature.ParseSignature(written)
		return err == nil && slices.ContainsFunc(keys, func(k signature.PublicKey) bool { return k.Verify(text, sig) })
	})
}

// jsonFormat is the option that chooses among the JSON formats of nix path-info. Nix has it from 2.33 on.
const jsonFormat = "--json-format"

// pathInfos runs nix path-info --json. A path that the store does not have is nil in the map, or is not in it. The
// whole map is nil when the program prints nothing, as the stand-ins for Nix in tests do.
//
// From 2.33 on, Nix warns if nobody chooses a format, and later versions are to refuse that or to print another one.
// Older versions and Lix refuse the option. pathInfos therefore chooses format 1 only after Nix demands a choice or
// prints a format with a version; the version of Nix does not tell, since Lix counts on its own.
func pathInfos(ctx context.Context, c command) (map[string]*pathInfo, error) {
	c.limit = maxPathInfo
	if say := c.lines; say != nil {
		c.lines = func(line string) {
			if !strings.Contains(line, jsonFormat) {
				say(line)
			}
		}
	}
	out, err := c.run(ctx)
	failed, isFailed := errors.AsType[*commandError](err)
	if isFailed && strings.Contains(failed.stderr, jsonFormat) || err == nil && versioned(out) {
		c.args = slices.Insert(slices.Clone(c.args), 1, jsonFormat, "1")
		out, err = c.run(ctx)
	}
	if err != nil {
		return nil, err
	}
	return readPathInfos(out)
}

// versioned says whether a text is of format 2 or later. Format 1 has only store paths as members.
func versioned(out []byte) bool {
	var format struct {
		Version int `json:"version"`
	}
	err := json.Unmarshal(out, &format)
	return err == nil && format.Version > 1
}

// readPathInfos reads format 1, or the list that versions of Nix before 2.19 print.
func readPathInfos(out []byte) (map[string]*pathInfo, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, nil
	}
	infos := map[string]*pathInfo{}
	if jsontext.Value(out).Kind() != '[' {
		if err := json.Unmarshal(out, &infos); err != nil {
			return nil, fmt.Errorf("read what nix path-info printed: %w", err)
		}
		return infos, nil
	}
	var list []*pathInfo
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("read what nix path-info printed: %w", err)
	}
	for _, info := range list {
		if info != nil && (info.Valid == nil || *info.Valid) {
			infos[info.Path] = info
		}
	}
	return infos, nil
}
