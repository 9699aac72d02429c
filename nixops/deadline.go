package nixops

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// Deadline is a command that the machine runs later.
type Deadline struct {
	Unit    string // without suffix
	After   time.Duration
	Command []string // absolute path and arguments
}

func (m *machine) ArmDeadline(ctx context.Context, d Deadline) error {
	if err := d.Check(); err != nil {
		return err
	}
	if err := m.super.arm(ctx, d); err != nil {
		return fmt.Errorf("arm deadline %s: %w", d.Unit, err)
	}
	return nil
}

// Check returns an error if no machine could run the deadline.
func (d Deadline) Check() error {
	if err := CheckUnit(d.Unit); err != nil {
		return err
	}
	if d.After <= 0 || len(d.Command) == 0 || !filepath.IsAbs(d.Command[0]) {
		return fmt.Errorf("deadline %s needs a time in the future and the absolute path of a command", d.Unit)
	}
	return nil
}

func (m *machine) DisarmDeadline(ctx context.Context, unit string) error {
	if err := CheckUnit(unit); err != nil {
		return err
	}
	if err := m.super.disarm(ctx, unit); err != nil {
		return fmt.Errorf("disarm deadline %s: %w", unit, err)
	}
	return nil
}

func (m *machine) DeadlineArmed(ctx context.Context, unit string) (bool, error) {
	if err := CheckUnit(unit); err != nil {
		return false, err
	}
	return m.super.armed(ctx, unit)
}
