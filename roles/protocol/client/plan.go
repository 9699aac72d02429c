package client

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"nixfleet/roles/protocol"
)

// Plan says what would happen from now on if all went well and, where docs are given, if
// the release that they are were accepted now. docs are its documents by their names
// below the release directory.
func (c *Client) Plan(ctx context.Context, docs map[string][]byte) (*protocol.Plan, error) {
	if docs == nil {
		return view[protocol.Plan](ctx, c, "/v1/plan")
	}
	var body bytes.Buffer
	archive := tar.NewWriter(&body)
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(docs[name]))})
		if err == nil {
			_, err = archive.Write(docs[name])
		}
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("archive release: %w", err)
	}
	return ask[protocol.Plan](ctx, c, request{
		method: http.MethodPost, path: "/v1/plan", raw: body.Bytes(), header: http.Header{"Content-Type": {protocol.TarType}},
		timeout: 10 * time.Minute, limit: maxDocument,
	})
}
