-- Numbers of users and devices are never used twice (AUTOINCREMENT): a message that was addressed to an old identity
-- can not reach the next owner of its name.
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    list BLOB NOT NULL,
    signature BLOB NOT NULL,
    UNIQUE (app, name)
) STRICT;

-- A device and its mailbox.
CREATE TABLE devices (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user INTEGER NOT NULL,
    device INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL DEFAULT 0,
    lost_seq INTEGER NOT NULL DEFAULT 0,
    counter INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    closed INTEGER NOT NULL DEFAULT 0,
    signed_prekey BLOB,
    kem_last_resort BLOB,
    -- Highest number ever uploaded, so that a repeated upload brings no used key back.
    highest_one_time INTEGER NOT NULL DEFAULT -1,
    highest_kem INTEGER NOT NULL DEFAULT -1,
    UNIQUE (user, device)
) STRICT;

-- kind 0: one-time prekeys; 1: one-time KEM prekeys.
CREATE TABLE one_time (
    device INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    id INTEGER NOT NULL,
    key BLOB NOT NULL,
    PRIMARY KEY (device, kind, id)
) STRICT;

CREATE TABLE messages (
    device INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    msg_id BLOB NOT NULL,
    sender INTEGER NOT NULL,
    from_user TEXT NOT NULL,
    from_device INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    blob BLOB NOT NULL,
    PRIMARY KEY (device, seq)
) STRICT;
CREATE INDEX messages_by_expiry ON messages (expires_at);

-- Message ids that were accepted.
CREATE TABLE seen (
    device INTEGER NOT NULL,
    sender INTEGER NOT NULL,
    msg_id BLOB NOT NULL,
    hash BLOB NOT NULL,
    seq INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (device, sender, msg_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_by_expiry ON seen (expires_at);

-- The last numbers of the two newest lane epochs of a sender; epoch_2 is the newer one.
CREATE TABLE lanes (
    device INTEGER NOT NULL,
    sender INTEGER NOT NULL,
    epoch_1 INTEGER,
    last_1 INTEGER,
    epoch_2 INTEGER NOT NULL,
    last_2 INTEGER NOT NULL,
    PRIMARY KEY (device, sender)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
    app TEXT NOT NULL,
    month INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    PRIMARY KEY (app, month)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    app TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

-- Secrets of this relay alone: the key of its resume cursors.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
