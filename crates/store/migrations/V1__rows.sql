-- Sealed rows. `tbl` is the stable number of the table, `part` a keyed hash, `sort` in clear, `value` ciphertext.
CREATE TABLE rows (
  id INTEGER PRIMARY KEY,
  tbl INTEGER NOT NULL,
  part BLOB NOT NULL,
  sort BLOB NOT NULL,
  version INTEGER NOT NULL,
  expires INTEGER,
  value BLOB NOT NULL,
  UNIQUE (tbl, part, sort)
) STRICT;

CREATE INDEX rows_by_expiry ON rows (expires) WHERE expires IS NOT NULL;

PRAGMA application_id = 0x53545652;
PRAGMA user_version = 1;
