-- Hosts under whose name two machines answer, until a person acts.
-- Lost: both are noticed again when they go on speaking.
CREATE TABLE host_twins (
  hostname      TEXT PRIMARY KEY,
  boot_id       TEXT NOT NULL,
  other_boot_id TEXT NOT NULL,
  since         TEXT NOT NULL,
  held          INTEGER NOT NULL,
  cleared       INTEGER NOT NULL
) STRICT;
