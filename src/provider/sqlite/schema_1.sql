-- Version 1. Never change this file once it is committed; a later version is another file.

-- One row: the stream and its counters.
CREATE TABLE stream (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    prefix TEXT NOT NULL,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    last_stored_at INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE subjects (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- The record is the last column, so that the others are read without the overflow pages of a large record. The checksum
-- covers sequence, subject, time and record, so that a damaged row is detected.
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- Every index ends with the sequence, so this one has the events of a subject in order.
CREATE INDEX events_by_subject ON events (subject);

CREATE TABLE message_ids (
    msg_id TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    stored_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX message_ids_by_age ON message_ids (stored_at);

-- Ids are never reused: the id of a deleted consumer must not lead to another consumer.
CREATE TABLE consumers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    filter TEXT NOT NULL,
    options TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    missed INTEGER NOT NULL,
    exhausted INTEGER NOT NULL,
    -- Counts the changes, so that a process knows whether what it has in memory is in force.
    version INTEGER NOT NULL,
    -- That of the columns before.
    checksum INTEGER NOT NULL
) STRICT;

-- Events before the cursor that are still to be delivered first.
CREATE TABLE backlog (
    consumer INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (consumer, sequence)
) STRICT, WITHOUT ROWID;

-- Events that were delivered and are not settled: one row for each block of 256 sequences that has any.
CREATE TABLE pending (
    consumer INTEGER NOT NULL,
    block INTEGER NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (consumer, block)
) STRICT, WITHOUT ROWID;
