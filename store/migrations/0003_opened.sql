-- Which opening of this file was the last. The same word stands in the lock file
-- beside it, so that a log (-wal) is not applied to a file that was put beside it.
-- Lost: nothing; the next opening writes it.
CREATE TABLE opened (
  id    INTEGER PRIMARY KEY CHECK (id = 1),
  epoch TEXT NOT NULL
) STRICT;
