#!lua flags=no-writes
-- Reads the size and the limits of a stream.
--
-- KEYS: log meta consumers
-- Reply: nothing if it does not exist, else RECORDS BYTES CONSUMERS PREFIX MAX_EVENTS MAX_BYTES MAX_AGE

local prefix, bytes, max_events, max_bytes, max_age =
  unpack(call('HMGET', KEYS[2], 'prefix', 'bytes', 'max_events', 'max_bytes', 'max_age'))
if not prefix then
  return {}
end
return {
  call('XLEN', KEYS[1]), bytes or '0', call('HLEN', KEYS[3]), prefix, max_events or '0', max_bytes or '0',
  max_age or '0',
}
