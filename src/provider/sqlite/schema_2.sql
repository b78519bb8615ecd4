-- Version 2. What is committed here is never changed: a later version is another file.

-- What the state of a block looks like: 1 is that of version 1, 2 has for each entry how long it was to wait, too.
ALTER TABLE pending ADD COLUMN form INTEGER NOT NULL DEFAULT 1;

-- How often the consumer was moved to another position; covered by the checksum where it is not 0.
ALTER TABLE consumers ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

-- The time, in Unix milliseconds, before which nothing is stored that the consumer is to get, until something is stored
-- behind it. Covered by the checksum where there is one.
ALTER TABLE consumers ADD COLUMN starts_at INTEGER;

-- Matches that retention dropped before consumers got them: of those behind `cursor`, where a consumer of this filter
-- stands, and not behind the next higher one. A consumer of the whole stream needs none.
CREATE TABLE overtaken (
    filter TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    missed INTEGER NOT NULL,
    PRIMARY KEY (filter, cursor)
) STRICT, WITHOUT ROWID;
