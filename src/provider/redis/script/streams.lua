#!lua flags=no-writes
-- Looks for keys in a part of the server.
--
-- ARGV: position pattern
-- Reply: NEXT_POSITION {key...}, where the positions begin and end with 0

return call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000, 'TYPE', 'hash')
