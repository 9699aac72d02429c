-- Channels that an operator froze until a time, the last freeze of each.
-- Lost: nothing says it again; whoever froze the channel does so once more (the audit has it in another table, which is
-- lost as well).
CREATE TABLE channel_freezes (
  channel   TEXT PRIMARY KEY,
  frozen_by TEXT NOT NULL,
  reason    TEXT NOT NULL,
  since     TEXT NOT NULL,
  until     TEXT NOT NULL,
  thawed    INTEGER NOT NULL
) STRICT;
