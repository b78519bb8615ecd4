#!lua flags=no-writes
-- Reads a page of the subjects that have retained events, in the order of their bytes.
--
-- KEYS: subjects
-- ARGV: from to count
-- Reply: subject...

return call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
