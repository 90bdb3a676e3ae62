-- How a user's key came to be: the newest rotations, as the user signed them. NULL for a key that is the user's first.
ALTER TABLE users ADD COLUMN rotations BLOB;
-- Rises when the keys of the device hand over to others: who proved the old ones is out.
ALTER TABLE devices ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
