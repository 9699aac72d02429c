package undo

import (
	"context"
	"fmt"

	"nixfleet/roles/agent/journal"
)

// noteOf is the note of a deadline: what there is to undo, for when the release takes the
// state directory away or damages what lies in it.
func noteOf(j *journal.Journal) ([]byte, error) {
	noted := *j
	if noted.Step == journal.Arming {
		noted.Step = journal.Switching // an armed deadline means that the switch may have begun
	}
	doc, err := journal.Encode(noted)
	if err != nil {
		return nil, fmt.Errorf("note of %s: %w", j.Units.Deadline, err)
	}
	return doc, nil
}

// Newest stands for the deadline that was armed last.
const Newest = "newest"

// Known is the activation under way by its journal or, where the journal is gone or cannot be
// believed, by the note of the deadline of that name. noted says which. It is nil where
// there is none.
func (u *Undoer) Known(ctx context.Context, deadline string) (j *journal.Journal, noted bool, err error) {
	j, err = u.Dir.Journal()
	if err == nil && j != nil || deadline == "" {
		return j, false, err
	}
	unit := deadline
	if deadline == Newest {
		unit = ""
	}
	doc, noteErr := u.Host.DeadlineNote(ctx, unit)
	if noteErr != nil || doc == nil {
		return nil, false, err
	}
	var note journal.Journal
	if noteErr := journal.Decode(doc, &note); noteErr != nil || unit != "" && note.Units.Deadline != unit {
		return nil, false, err
	}
	// What has become the profile has proven itself: its activation is over, and only its
	// deadline could not be disarmed.
	profile, profileErr := u.Host.Profile(ctx)
	if profileErr != nil || profile == note.Closure {
		return nil, false, err
	}
	u.Log.Error().AnErr("journal", err).Str("closure", note.Closure).Str("deadline",
		deadline).Msg("the activation's journal is gone or damaged; its deadline's note is believed")
	return &note, true, nil
}
