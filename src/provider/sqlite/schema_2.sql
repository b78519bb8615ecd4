-- Version 2. Never change this file once it is committed; a later version is another file.

-- Format of the state of a block: 1 is that of version 1, 2 adds the original wait to each entry.
ALTER TABLE pending ADD COLUMN form INTEGER NOT NULL DEFAULT 1;

-- Number of times that the consumer was moved to another position. The checksum covers it if it is not 0.
ALTER TABLE consumers ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

-- Start time in Unix milliseconds; NULL once the consumer has started. The checksum covers it if there is one.
ALTER TABLE consumers ADD COLUMN starts_at INTEGER;

-- Number of matches that retention dropped before consumers received them. `cursor` is the position of a consumer with
-- this filter; the row counts the matches after it, up to the next higher cursor. A consumer of everything needs none.
CREATE TABLE overtaken (
    filter TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    missed INTEGER NOT NULL,
    PRIMARY KEY (filter, cursor)
) STRICT, WITHOUT ROWID;
