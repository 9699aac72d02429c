package cp

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// plan says what would happen from now on.
func (s *server) plan(w http.ResponseWriter, _ *http.Request) { s.answerPlan(w, nil) }

// planRelease says what would happen if the release in the body, a tar archive
// of its documents, were accepted now. It must be one that could be.
func (s *server) planRelease(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") != protocol.TarType {
		http.Error(w, "expected request with `Content-Type: "+protocol.TarType+"`", http.StatusUnsupportedMediaType)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(planTimeout))
	_ = control.SetWriteDeadline(time.Now().Add(2 * planTimeout))
	docs, err := readDocuments(http.MaxBytesReader(w, r.Body, protocol.MaxPlanBody))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) || errors.Is(err, pki.ErrSize) {
			status = http.StatusRequestEntityTooLarge
		}
		writeRefusal(w, r, status, "no-release", err.Error())
		return
	}
	o, err := s.loadOptions(s.cfg.FreshnessWindow)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	rel, err := fleet.LoadRelease(docs, o)
	if err == nil {
		err = rel.Supersedes(s.snapshot.Load().rel)
	}
	if err != nil {
		writeRefusal(w, r, http.StatusUnprocessableEntity, "release-refused", err.Error())
		return
	}
	s.answerPlan(w, rel)
}

// planTimeout bounds the reading of a whole release.
const planTimeout = 2 * time.Minute

// answerPlan decides upon a copy, so that check-ins need not wait for it.
func (s *server) answerPlan(w http.ResponseWriter, rel *fleet.Release) {
	var now time.Time
	world := look(s, func(w *rollout.World, at time.Time) *rollout.World {
		now = at
		return w.Clone(at)
	})
	writeJSON(w, http.StatusOK, world.Spend(rel, rollout.PlanOptions{}, now))
}

// readDocuments reads a tar archive of regular files.
func readDocuments(body io.Reader) (source.Memory, error) {
	docs := source.Memory{}
	for archive := tar.NewReader(body); ; {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read release: %w", err)
		}
		if head.Typeflag != tar.TypeReg || len(docs) == 2*source.MaxHeads {
			return nil, fmt.Errorf("read release: %.200q is no document, or one too many", head.Name)
		}
		if docs[head.Name], err = source.ReadBounded(archive, head.Name); err != nil {
			return nil, err
		}
	}
}
