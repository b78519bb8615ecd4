#!lua flags=allow-oom
-- Drops the oldest records while a limit of the stream is exceeded, up to a bound.
--
-- KEYS: log meta subjects cursors overtaken consumers lagged
-- ARGV: epoch base [time]
-- Reply: replaced | ok DROPPED MORE

local keys = {
  log = KEYS[1], meta = KEYS[2], subjects = KEYS[3], cursors = KEYS[4], overtaken = KEYS[5], consumers = KEYS[6],
  lagged = KEYS[7], base = ARGV[2],
}
local epoch, stream = read_stream(keys.meta)
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local dropped, more = retain(keys, stream, time_now(ARGV[3]))
return { 'ok', dropped, more and 1 or 0 }
