-- Sealed rows of many users. `place` names the user's store, `tbl` is the stable number of the table, `part` a keyed hash,
-- `sort` in clear, `value` ciphertext.
CREATE TABLE stvor_rows (
  place BYTEA NOT NULL,
  tbl SMALLINT NOT NULL,
  part BYTEA NOT NULL,
  sort BYTEA NOT NULL,
  version BIGINT NOT NULL,
  expires BIGINT,
  value BYTEA NOT NULL,
  PRIMARY KEY (place, tbl, part, sort)
) WITH (fillfactor = 85);

-- Ciphertext does not compress.
ALTER TABLE stvor_rows ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE INDEX stvor_rows_by_expiry ON stvor_rows (place, expires) WHERE expires IS NOT NULL;

-- The last commit of every opening: how a client learns whether a commit was applied whose answer was lost.
CREATE TABLE stvor_writers (
  place BYTEA NOT NULL,
  writer BYTEA NOT NULL,
  seq BIGINT NOT NULL,
  at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (place, writer)
) WITH (fillfactor = 50);
