package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/git"
	"nixfleet/pki"
)

// maxReleaseFiles bounds how many files are listed: those of the release directory
// itself and of its heads. Manifests are asked for by name, since a repository keeps
// those of every release it ever had.
const maxReleaseFiles = 50_000

// maxHeadsBytes bounds what all heads of a release have together, before any is verified.
const maxHeadsBytes = 64 << 20

// errRelease means that the commit is there and has no readable release.
var errRelease = errors.New("the commit has no readable release")

// gitTree is the release directory of one commit. The documents of its release
// are in Memory; manifests of older ones are read when they are asked for.
type gitTree struct {
	source *gitSource
	mirror string
	spec   string // commit and directory, to which a name is added
	blobs  map[string]gitBlob
	loaded Memory
}

type gitBlob struct {
	id   string
	size int64
}

// tree reads the release directory of a commit: its listing, and in one go each
// the documents and the manifests that the heads name.
func (s *gitSource) tree(ctx context.Context, mirror, commit string) (*gitTree, error) {
	blobs, spec, err := s.list(ctx, mirror, commit)
	if err != nil {
		return nil, err
	}
	t := &gitTree{source: s, mirror: mirror, spec: spec, blobs: blobs, loaded: Memory{}}
	var documents, heads []string
	var headBytes int64
	for name := range blobs {
		switch base := strings.TrimSuffix(name, fleet.SignatureSuffix); {
		case path.Dir(base) == fleet.HeadsDir && strings.HasSuffix(base, ".json"):
			documents = append(documents, name)
			if headBytes += blobs[name].size; headBytes > maxHeadsBytes {
				return nil, fmt.Errorf("%w: %w: the heads have more than %d bytes", errRelease, pki.ErrSize, maxHeadsBytes)
			}
			if base == name {
				heads = append(heads, name)
			}
		case base == fleet.FleetName || slices.Contains(listedNames, base):
			documents = append(documents, name)
		}
	}
	if err := t.load(ctx, documents); err != nil {
		return nil, err
	}
	var manifests []string
	for _, head := range heads {
		var h struct {
			RolloutID string `json:"rolloutId"`
		}
		// What a head says is verified later; here it only saves runs of git.
		if pki.Decode(t.loaded[head], &h) != nil || !fleet.ValidRolloutID(h.RolloutID) {
			continue
		}
		name := fleet.ManifestName(h.RolloutID)
		manifests = append(manifests, name, name+fleet.SignatureSuffix)
	}
	slices.Sort(manifests)
	found, err := t.find(ctx, slices.Compact(manifests))
	if err != nil {
		return nil, err
	}
	maps.Copy(t.blobs, found)
	return t, t.load(ctx, slices.Sorted(maps.Keys(found)))
}

// find asks which of names are files of the commit.
func (t *gitTree) find(ctx context.Context, names []string) (map[string]gitBlob, error) {
	if len(names) == 0 {
		return nil, nil
	}
	var asked bytes.Buffer
	for _, name := range names {
		fmt.Fprintln(&asked, t.spec+name)
	}
	out, err := t.source.git(ctx, gitCall{mirror: t.mirror, args: []string{"cat-file", "--batch-check"}, stdin: &asked})
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) <= len(names) {
		return nil, fmt.Errorf("cat-file answered %d lines for %d names", len(lines), len(names))
	}
	found := map[string]gitBlob{}
	for i, name := range names {
		fields := strings.Fields(lines[i])
		if len(fields) != 3 || fields[1] != "blob" {
			continue // missing, or not a file
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("cat-file answered %.120q", lines[i])
		}
		found[name] = gitBlob{fields[0], size}
	}
	return found, nil
}

// list gives the regular files of the release directory and of its heads.
func (s *gitSource) list(
	ctx context.Context, mirror, commit string,
) (blobs map[string]gitBlob, spec string, err error) {
	dir := strings.Trim(filepath.ToSlash(filepath.Clean(s.ReleaseDir)), "/")
	at, spec := commit, commit+":"
	if dir != "" && dir != "." {
		at, spec = commit+":"+dir, commit+":"+dir+"/"
	}
	blobs = map[string]gitBlob{}
	for _, below := range []struct{ tree, prefix string }{{at, ""}, {spec + fleet.HeadsDir, fleet.HeadsDir + "/"}} {
		out, err := s.git(ctx, gitCall{mirror: mirror, args: []string{"ls-tree", "-l", "-z", "--full-tree", below.tree}})
		if git.ExitCode(err) != 0 && below.prefix != "" {
			continue // it has no heads
		}
		if git.ExitCode(err) != 0 {
			return nil, "", fmt.Errorf("%w: directory %q: %w", errRelease, dir, err)
		}
		if err != nil {
			return nil, "", err
		}
		found, err := parseListing(string(out))
		if err != nil {
			return nil, "", err
		}
		for name, blob := range found {
			blobs[below.prefix+name] = blob
		}
	}
	return blobs, spec, nil
}

// parseListing reads "<mode> blob <id> <size>\t<name>\0" of ls-tree -l -z.
func parseListing(listing string) (map[string]gitBlob, error) {
	blobs := map[string]gitBlob{}
	for line := range strings.SplitSeq(listing, "\x00") {
		meta, name, ok := strings.Cut(line, "\t")
		fields := strings.Fields(meta)
		// Links and submodules are not documents.
		if !ok || len(fields) != 4 || fields[1] != "blob" || fields[0] == "120000" {
			continue
		}
		size, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("ls-tree answered %.80q", meta)
		}
		if blobs[name] = (gitBlob{fields[2], size}); len(blobs) > maxReleaseFiles {
			return nil, fmt.Errorf("%w: %w: more than %d files", errRelease, pki.ErrSize, maxReleaseFiles)
		}
	}
	return blobs, nil
}

// load reads files into Memory with one run of git.
func (t *gitTree) load(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	total := int64(t.loaded.size())
	var asked bytes.Buffer
	for _, name := range names {
		blob := t.blobs[name]
		if total += blob.size; blob.size > int64(fleet.MaxSize(name)) || total > maxReleaseBytes {
			return fmt.Errorf("%w: %s: %w", errRelease, name, pki.ErrSize)
		}
		fmt.Fprintln(&asked, blob.id)
	}
	const line = 128 // header and newline of one object
	out, err := t.source.git(ctx, gitCall{mirror: t.mirror, args: []string{"cat-file", "--batch"}, stdin: &asked,
		limit: total + int64(line*len(names))})
	if err != nil {
		return err
	}
	answer := bufio.NewReader(bytes.NewReader(out))
	for _, name := range names {
		if t.loaded[name], err = nextBlob(answer, t.blobs[name]); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

// nextBlob reads "<id> blob <size>\n<content>\n".
func nextBlob(r *bufio.Reader, want gitBlob) ([]byte, error) {
	header, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if header != fmt.Sprintf("%s blob %d\n", want.id, want.size) {
		return nil, fmt.Errorf("cat-file answered %.120q", header)
	}
	data := make([]byte, want.size+1)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	return data[:want.size:want.size], nil
}

// Open opens a document.
func (t *gitTree) Open(name string) (fs.File, error) {
	data, err := t.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &document{Reader: bytes.NewReader(data), name: path.Base(name)}, nil
}

// ReadFile reads a document of the commit.
func (t *gitTree) ReadFile(name string) ([]byte, error) {
	if data, ok := t.loaded[name]; ok {
		return data, nil
	}
	blob, ok := t.blobs[name]
	if !ok && strings.HasPrefix(name, fleet.ManifestsDir+"/") && fs.ValidPath(name) && !strings.Contains(name, "\n") {
		found, err := t.find(context.Background(), []string{name})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		blob, ok = found[name]
	}
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if blob.size > int64(fleet.MaxSize(name)) {
		return nil, fmt.Errorf("read %s: %w", name, pki.ErrSize)
	}
	data, err := t.source.git(context.Background(), gitCall{mirror: t.mirror, args: []string{"cat-file", "blob", blob.id},
		limit: blob.size})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
