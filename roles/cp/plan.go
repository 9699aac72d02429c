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

// plans says what would happen.
type plans struct {
	world   *world
	release *inForce
	views   *views
}

// plan is what would happen from now on.
func (p *plans) plan(c *call) (any, error) { return p.of(c, nil) }

// planRelease says what would happen if the release in the body, a tar archive
// of its documents, were accepted now. It must be one that could be.
func (p *plans) planRelease(c *call) (any, error) {
	if c.Header.Get("Content-Type") != protocol.TarType {
		return nil, badRequest(http.StatusUnsupportedMediaType, "expected request with `Content-Type: %s`", protocol.TarType)
	}
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Now().Add(planTimeout))
	_ = control.SetWriteDeadline(time.Now().Add(2 * planTimeout))
	docs, err := readDocuments(http.MaxBytesReader(c.w, c.Body, protocol.MaxPlanBody))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) || errors.Is(err, pki.ErrSize) {
			status = http.StatusRequestEntityTooLarge
		}
		return nil, refused(status, "no-release", "%s", err)
	}
	o, err := p.release.loadOptions(p.release.cfg.FreshnessWindow)
	if err != nil {
		return nil, err
	}
	rel, err := fleet.LoadRelease(docs, o)
	if err == nil {
		err = rel.Supersedes(p.release.snapshot.Load().rel)
	}
	if err != nil {
		return nil, refused(http.StatusUnprocessableEntity, "release-refused", "%s", err)
	}
	return p.of(c, rel)
}

// planTimeout bounds the reading of a whole release.
const planTimeout = 2 * time.Minute

// of decides upon a copy of the world, so that check-ins need not wait for it.
func (p *plans) of(c *call, rel *fleet.Release) (any, error) {
	var now time.Time
	seen := map[string]rollout.HostView{}
	world := look(p.world, func(w *rollout.World, at time.Time) *rollout.World {
		now = at
		for _, v := range w.Hosts(at) {
			seen[v.Host] = v
		}
		return w.Clone(at)
	})
	plan := world.Spend(rel, rollout.PlanOptions{}, now)
	// A host that is shut out is told nothing, which the decisions do not know.
	moves := plan.Moves
	plan.Moves = moves[:0]
	for _, m := range moves {
		shut, err := p.views.shutOut(c.Context(), seen[m.Host])
		switch to := m.To; {
		case err != nil:
			return nil, err
		case shut == nil:
			plan.Moves = append(plan.Moves, m)
		default:
			plan.Blocked = append(plan.Blocked, protocol.PlanBlocked{Host: m.Host, Channel: m.Channel, Wave: m.Wave,
				From: m.From, To: &to, Reason: *shut})
		}
	}
	for i := range plan.Blocked {
		shut, err := p.views.shutOut(c.Context(), seen[plan.Blocked[i].Host])
		if err != nil {
			return nil, err
		}
		if shut != nil {
			plan.Blocked[i].Reason = *shut
		}
	}
	return plan, nil
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
			return nil, fmt.Errorf("read release: %.200q is not a regular file, or there are too many files", head.Name)
		}
		if docs[head.Name], err = source.ReadBounded(archive, head.Name, fleet.MaxSize(head.Name)); err != nil {
			return nil, err
		}
	}
}
