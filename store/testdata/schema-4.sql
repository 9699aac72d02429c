-- What a control plane of schema 4 left behind: one rollout with one dispatch,
-- in the tables of 0004_host_twins.sql.
INSERT INTO rollouts VALUES ('stable', 'intent', 'id', 'ref', '["id"]', 'Executing', 0, '2026-03-01 12:00:00.000', '2026-03-01 12:00:00.000',
  '2026-03-01 12:00:00.000', NULL, NULL, '', '', NULL);
INSERT INTO rollout_hosts VALUES ('web-01', 'intent', 'stable', 'Dispatched', 0, 'closure', '', '2026-03-01 12:00:00.000', NULL, NULL, '', 1, '[]');
INSERT INTO pending_confirms VALUES (1, 'web-01', 'id', 'stable', 0, 'closure', 'ref', 'pending', '2026-03-01 12:00:00.000', '2026-03-01 12:06:00.000', NULL);
INSERT INTO dispatch_leases VALUES (1, 'intent', '2026-03-01 12:05:00.000', '2026-03-01 12:12:00.000', 1, NULL);
