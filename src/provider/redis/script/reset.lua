#!lua flags=allow-oom
-- Moves a durable consumer to a position within the retained records, or behind the last one. Deliveries before the move
-- can no longer be settled.
--
-- KEYS: log meta consumers consumer due attempts backlog cursors overtaken lagged
-- ARGV: epoch channel name kind (first, last, sequence or time) value [time]
-- Reply: replaced | absent | ok

local log, meta, consumers, consumer = unpack(KEYS, 1, 4)
local keys = { cursors = KEYS[8], overtaken = KEYS[9], lagged = KEYS[10] }
local name, kind, value = ARGV[3], ARGV[4], tonumber(ARGV[5])
local epoch, stream = read_stream(meta)
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local known = call('HGET', consumers, name)
if not known then
  return { 'absent' }
end

local cursor = stream.first - 1
if kind == 'last' then
  cursor = stream.last
elseif kind == 'sequence' then
  cursor = math.max(cursor, math.min(value - 1, stream.last))
elseif kind == 'time' then
  local found = first_stored_since(log, value, stream, time_now(ARGV[6]))
  cursor = found and found - 1 or stream.last
end

call('UNLINK', KEYS[5], KEYS[6], KEYS[7])
forget_position(keys, name, known:match(' (.*)$'))
call('ZADD', keys.cursors, text(cursor), name)
call('HSET', consumer, 'cursor', text(cursor), 'missed', 0, 'redelivered', 0)
call('HINCRBY', consumer, 'moves', 1)
call('HDEL', consumer, 'start')
if call('HGET', consumer, 'mirror') then
  pcall(load_mirror(), log, meta, name, cursor)
end
wake(ARGV[2], 'm', name)
return { 'ok' }
