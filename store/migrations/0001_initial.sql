-- Times are UTC text 'YYYY-MM-DD HH:MM:SS.SSS': datetime() reads it and it
-- compares correctly as text. A JSON member is a JSON array or object.

PRAGMA application_id = 1852405862; -- 'nixf': a file of another program is not taken for ours

-- One movement of a channel to one intent.
-- Lost: the release in git opens it anew; its wave and soak come back from the
-- agents' attested confirm times, a halt from their failure reports. A hold by
-- an operator does not come back.
CREATE TABLE rollouts (
  channel       TEXT NOT NULL,
  intent        TEXT NOT NULL,
  rollout_id    TEXT NOT NULL,
  channel_ref   TEXT NOT NULL,
  ids           TEXT NOT NULL, -- JSON: every id of this intent, oldest first
  state         TEXT NOT NULL,
  wave          INTEGER NOT NULL,
  wave_since    TEXT NOT NULL,
  opened_at     TEXT NOT NULL,
  created_at    TEXT NOT NULL,
  terminal_at   TEXT,
  superseded_at TEXT,
  superseded_by TEXT NOT NULL,
  halt_reason   TEXT NOT NULL,
  hold          TEXT, -- JSON: action, by, reason, at
  PRIMARY KEY (channel, intent)
) STRICT;

-- Where a host stands within a rollout.
-- Lost: the next check-in of the host tells what it runs and when it confirmed.
CREATE TABLE rollout_hosts (
  hostname      TEXT NOT NULL,
  intent        TEXT NOT NULL,
  channel       TEXT NOT NULL,
  state         TEXT NOT NULL,
  wave          INTEGER NOT NULL,
  closure_hash  TEXT NOT NULL,
  previous      TEXT NOT NULL, -- closure before the first dispatch of this rollout
  since         TEXT NOT NULL,
  healthy_since TEXT,
  failing_since TEXT,
  reason        TEXT NOT NULL,
  attempt       INTEGER NOT NULL,
  failures      TEXT NOT NULL, -- JSON
  PRIMARY KEY (hostname, intent)
) STRICT;

-- Dispatches, read by people in trouble: names and columns are fixed.
-- Lost: hosts that have not reported count as in flight for one lease and
-- confirm window, so that no budget breaks.
CREATE TABLE pending_confirms (
  id                  INTEGER PRIMARY KEY AUTOINCREMENT,
  hostname            TEXT NOT NULL,
  rollout_id          TEXT NOT NULL,
  channel             TEXT NOT NULL,
  wave                INTEGER NOT NULL,
  target_closure_hash TEXT NOT NULL,
  target_channel_ref  TEXT NOT NULL,
  state               TEXT NOT NULL CHECK (state IN ('pending', 'confirmed', 'rolled-back', 'cancelled', 'deferred-pending-reboot')),
  dispatched_at       TEXT NOT NULL,
  confirm_deadline    TEXT NOT NULL,
  confirmed_at        TEXT
) STRICT;
CREATE INDEX pending_confirms_by_host ON pending_confirms (hostname, dispatched_at);
CREATE INDEX pending_confirms_by_rollout ON pending_confirms (rollout_id);

-- What a dispatch promises besides, under the same id.
-- Lost: as pending_confirms.
CREATE TABLE dispatch_leases (
  id          INTEGER PRIMARY KEY REFERENCES pending_confirms (id) ON DELETE CASCADE,
  intent      TEXT NOT NULL,
  start_by    TEXT NOT NULL,
  slot_until  TEXT NOT NULL,
  knows_lease INTEGER NOT NULL
) STRICT;
CREATE INDEX dispatch_leases_by_slot ON dispatch_leases (slot_until);
CREATE INDEX dispatch_leases_by_intent ON dispatch_leases (intent);

-- Closures that are not offered on a channel any more.
-- Lost: failure reports of the hosts bring it back.
CREATE TABLE quarantines (
  channel      TEXT NOT NULL,
  closure_hash TEXT NOT NULL,
  reason       TEXT NOT NULL,
  since        TEXT NOT NULL,
  cleared      INTEGER NOT NULL,
  PRIMARY KEY (channel, closure_hash)
) STRICT;

-- Append-only log of what happened and why.
-- Lost: it is gone; nothing depends on it.
CREATE TABLE rollout_events (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  at         TEXT NOT NULL,
  kind       TEXT NOT NULL,
  intent     TEXT NOT NULL,
  rollout_id TEXT NOT NULL,
  channel    TEXT NOT NULL,
  hostname   TEXT NOT NULL,
  actor      TEXT NOT NULL,
  reason     TEXT NOT NULL,
  detail     TEXT NOT NULL
) STRICT;
CREATE INDEX rollout_events_by_rollout ON rollout_events (intent, seq);

-- Certificates issued before not_before are refused. Local rows only: the
-- signed list lives in the release. People insert rows by hand, so names,
-- columns and defaults are fixed and no type is enforced.
-- Lost: revocations that were not committed to the fleet are gone.
CREATE TABLE cert_revocations (
  hostname   TEXT NOT NULL,
  not_before TEXT NOT NULL,
  reason     TEXT,
  revoked_by TEXT,
  revoked_at TEXT NOT NULL DEFAULT (datetime('now'))
);
CREATE INDEX cert_revocations_by_host ON cert_revocations (hostname);

-- Nonces of bootstrap tokens that were used, kept until token and list entry
-- have expired.
-- Lost: the signed allowlist and the declared host key still bind a token.
CREATE TABLE token_replay (
  nonce      TEXT PRIMARY KEY,
  hostname   TEXT NOT NULL,
  used_at    TEXT NOT NULL,
  keep_until TEXT NOT NULL
) STRICT;

-- The last reports of each host.
-- Lost: gone; hosts report outstanding failures again.
CREATE TABLE host_reports (
  seq              INTEGER PRIMARY KEY AUTOINCREMENT,
  event_id         TEXT NOT NULL,
  hostname         TEXT NOT NULL,
  received_at      TEXT NOT NULL,
  event            TEXT NOT NULL,
  rollout_id       TEXT,
  signature_status TEXT,
  details          TEXT NOT NULL -- JSON
) STRICT;
CREATE INDEX host_reports_by_host ON host_reports (hostname, seq);

-- What operators did, by the name in their certificate.
-- Lost: gone.
CREATE TABLE audit (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  at      TEXT NOT NULL,
  actor   TEXT NOT NULL,
  action  TEXT NOT NULL,
  subject TEXT NOT NULL,
  reason  TEXT NOT NULL
) STRICT;
