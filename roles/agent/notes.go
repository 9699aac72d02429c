package agent

import (
	"context"
	"os"
	"strings"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

// act is a note of what root did.
type act struct {
	Kind   string        `json:"kind" shape:"R"` // of the report
	Text   string        `json:"text" shape:"R"`
	Hold   *holdState    `json:"hold" shape:"N"`   // that is in force from now
	Resume bool          `json:"resume" shape:"D"` // none is any more
	At     pki.Timestamp `json:"at" shape:"R"`
}

// notes takes up what root did while the agent runs.
type notes struct {
	cfg    *Config
	log    zerolog.Logger
	host   nixops.Host
	dir    journal.Directory
	work   *work
	memory *memory
}

// watch takes up notes while the agent runs, and notices another generation: both
// are for the control plane to hear of at once.
func (n *notes) watch(ctx context.Context) {
	running := ""
	for {
		n.take(ctx)
		if now, err := n.host.CurrentSystem(ctx); err == nil && now != running {
			if running != "" {
				n.work.tellChange()
			}
			running = now
		}
		if nixops.Sleep(ctx, n.cfg.ActsPoll) != nil {
			return
		}
	}
}

func (n *notes) take(ctx context.Context) {
	dir := journal.Directory(n.dir.Path(actsDir))
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		return // there are no notes yet
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		done := journal.Optional[act](dir, e.Name(),
			func(err error) { n.log.Error().Err(err).Str("file", e.Name()).Msg("note of a root command not read") })
		if done == nil {
			continue
		}
		n.memory.apply(ctx, done)
		if err := dir.Remove(e.Name()); err != nil {
			n.log.Error().Err(err).Msg("note of a root command not removed")
			return
		}
	}
}
