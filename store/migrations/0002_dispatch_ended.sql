-- When a dispatch ended, however it ended. Dispatches from before have none.
-- Lost: as pending_confirms.
ALTER TABLE dispatch_leases ADD COLUMN ended_at TEXT;
