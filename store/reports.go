package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// reportsPerHost is how many reports of a host are kept.
const reportsPerHost = 32

// Report is one stored event of a host. Rollout and Verdict may be none;
// Details is JSON.
type Report struct {
	EventID, Hostname, Event string
	ReceivedAt               time.Time
	Rollout, Verdict         *string
	Details                  string
}

// AddReport stores a report and drops the host's oldest beyond 32.
func (s *Store) AddReport(ctx context.Context, r Report) error {
	if err := s.do(ctx, r.put); err != nil {
		return fmt.Errorf("store report of %s: %w", r.Hostname, err)
	}
	return nil
}

func (r Report) put(tx *sql.Tx) error {
	if _, err := tx.Exec(`INSERT INTO host_reports
			(event_id, hostname, received_at, event, rollout_id, signature_status, details) VALUES (?,?,?,?,?,?,?)`,
		r.EventID, r.Hostname, text(r.ReceivedAt), r.Event, r.Rollout, r.Verdict, r.Details); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM host_reports WHERE hostname = ?1 AND seq NOT IN
			(SELECT seq FROM host_reports WHERE hostname = ?1 ORDER BY seq DESC LIMIT ?2)`, r.Hostname, reportsPerHost)
	return err
}

// Reports reads the newest reports of a host, or of all where host is empty, newest first.
func (s *Store) Reports(ctx context.Context, host string, limit int) ([]Report, error) {
	var reports []Report
	var err error
	if host == "" {
		reports, err = s.reports(ctx, `ORDER BY seq DESC LIMIT ?`, limit)
	} else {
		reports, err = s.reports(ctx, `WHERE hostname = ? ORDER BY seq DESC LIMIT ?`, host, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("read reports: %w", err)
	}
	return reports, nil
}

// ReportsOf reads the kept reports of a host, newest first.
func (s *Store) ReportsOf(ctx context.Context, host string) ([]Report, error) {
	reports, err := s.reports(ctx, `WHERE hostname = ? ORDER BY seq DESC`, host)
	if err != nil {
		return nil, fmt.Errorf("read reports of %s: %w", host, err)
	}
	return reports, nil
}

// reports reads those that the rest of a query names.
func (s *Store) reports(ctx context.Context, which string, args ...any) ([]Report, error) {
	return collect(ctx, s.read, `SELECT event_id, hostname, received_at, event, rollout_id, signature_status, details
		FROM host_reports `+which, func(r *Report) []any {
		return []any{&r.EventID, &r.Hostname, moment{&r.ReceivedAt}, &r.Event, &r.Rollout, &r.Verdict, &r.Details}
	}, args...)
}

// VerifiedReports counts the kept reports of each host whose signature verified.
func (s *Store) VerifiedReports(ctx context.Context) (map[string]uint32, error) {
	type count struct {
		host string
		n    uint32
	}
	counts, err := collect(ctx, s.read,
		`SELECT hostname, count(*) FROM host_reports WHERE signature_status = 'verified' GROUP BY hostname`,
		func(c *count) []any { return []any{&c.host, &c.n} })
	if err != nil {
		return nil, fmt.Errorf("count reports: %w", err)
	}
	byHost := make(map[string]uint32, len(counts))
	for _, c := range counts {
		byHost[c.host] = c.n
	}
	return byHost, nil
}
