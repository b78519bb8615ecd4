#!lua
-- Opens a stream, and creates it if it does not exist. Limits that are named replace those in force.
--
-- KEYS: log meta
-- ARGV: prefix epoch creates (limit value)...
-- Reply: absent | format VERSION | prefix PREFIX | opened EPOCH IS_NEW MAX_EVENTS MAX_BYTES MAX_AGE DEDUP_WINDOW

local log, meta = KEYS[1], KEYS[2]
local prefix, creates = ARGV[1], ARGV[3] ~= ''
local FORMAT = '1'

local format, epoch, found = unpack(call('HMGET', meta, 'v', 'epoch', 'prefix'))
local is_new = not format
if format and format ~= FORMAT then
  return { 'format', format }
elseif format and found ~= prefix then
  return { 'prefix', found }
elseif is_new and not creates then
  return { 'absent' }
end
if is_new then
  epoch = ARGV[2]
  -- What is left of a stream whose other keys are lost keeps its sequences.
  local newest = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local last = newest and newest[1]:match('^%d+') or '0'
  call('HSET', meta, 'v', FORMAT, 'epoch', epoch, 'prefix', prefix, 'first', 1, 'last', last, 'gap', last)
end
local limits = {}
for i = 4, #ARGV do
  limits[#limits + 1] = ARGV[i]
end
bulk('HSET', meta, limits)
local _, stream = read_stream(meta)
return {
  'opened', epoch, is_new and 1 or 0, text(stream.max_events), text(stream.max_bytes), text(stream.max_age),
  text(stream.dedup_window),
}
