#!lua flags=no-writes
-- Reads a page of the consumers. A page may repeat some of an earlier one.
--
-- KEYS: consumers
-- ARGV: position count
-- Reply: NEXT_POSITION {name generation ...}, where the positions begin and end with 0

return call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
