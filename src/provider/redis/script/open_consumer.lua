#!lua flags=allow-oom
-- Opens a consumer, and creates it at its start if it does not exist. An existing one keeps its filter and its start
-- policy, and takes over the other settings if it is asked to.
--
-- KEYS: log meta consumers cursors overtaken lagged ephemerals consumer due attempts backlog
-- ARGV: epoch base channel name generation filter pattern policy options ack_wait max_pending max_deliver backoff applies
--       is_ephemeral mirrors start value count (sequence of the backlog)... [time]
-- Reply: replaced | conflict FILTER OPTIONS | newest LAST | opened GENERATION REVISION IS_NEW OPTIONS

local log, meta, consumers, cursors, overtaken, lagged, ephemerals, consumer, due, attempts, backlog = unpack(KEYS)
local epoch, base, channel, name, generation, filter, pattern, policy, options = unpack(ARGV, 1, 9)
local settings = {
  'ack_wait', ARGV[10], 'max_pending', ARGV[11], 'max_deliver', ARGV[12], 'backoff', ARGV[13], 'options', options,
}
local applies, is_ephemeral, mirrors = ARGV[14] ~= '', ARGV[15] ~= '', ARGV[16] ~= ''
local start, value = ARGV[17], tonumber(ARGV[18])
local first_of_backlog, count = 20, tonumber(ARGV[19])
local now = time_now(ARGV[first_of_backlog + count])
local keys = {
  consumers = consumers, cursors = cursors, overtaken = overtaken, lagged = lagged, ephemerals = ephemerals, base = base,
}

local found_epoch, stream = read_stream(meta)
if found_epoch ~= epoch then
  return { 'replaced' }
end
sweep(keys, now)

-- Gives the consumer its mirror group. This comes before other writes, because the permission may be missing.
local function add_mirror(cursor)
  redis.pcall('XGROUP', 'CREATE', log, name, '0-0', 'MKSTREAM')
  load_mirror()(log, meta, name, cursor)
end

local found, old_filter, old_policy, old_options, revision, old_cursor, has_mirror = unpack(call(
  'HMGET', consumer, 'gen', 'filter', 'policy', 'options', 'revision', 'cursor', 'mirror'
))
if found then
  if old_filter ~= filter or (applies and old_policy ~= policy) then
    return { 'conflict', old_filter, old_options }
  end
  if mirrors then
    add_mirror(tonumber(old_cursor))
    if not has_mirror then
      call('HSET', consumer, 'mirror', 1)
    end
  end
  if applies and old_options ~= options then
    revision = tonumber(revision) + 1
    bulk('HSET', consumer, settings)
    call('HSET', consumer, 'revision', revision)
    wake(channel, 'm', name)
  end
  return { 'opened', found, revision, 0, applies and options or old_options }
end
-- The start policy needs the newest records of subjects, which the client has not looked for yet.
if start == 'newest' then
  return { 'newest', text(stream.last) }
end

-- Events that were dropped before do not count as missed.
local cursor, position = stream.first - 1, nil
if start == 'last' then
  cursor = stream.last
elseif start == 'sequence' then
  cursor = math.max(cursor, value - 1)
elseif start == 'backlog' then
  cursor = math.max(cursor, value)
elseif start == 'time' then
  local first = first_stored_since(log, value, stream, now)
  cursor = first and first - 1 or stream.last
  -- A publish at that time starts the consumer.
  position = not first and -value - 1
end

if mirrors then
  add_mirror(cursor)
  settings[#settings + 1], settings[#settings + 2] = 'mirror', 1
end
-- What is left of a consumer that was deleted in part.
call('UNLINK', consumer, due, attempts, backlog)
local at, end_of_backlog = first_of_backlog, first_of_backlog + count - 1
while at <= end_of_backlog and tonumber(ARGV[at]) < stream.first do
  at = at + 1
end
for from = at, end_of_backlog, CHUNK do
  call('RPUSH', backlog, unpack(ARGV, from, math.min(from + CHUNK - 1, end_of_backlog)))
end
call('ZADD', cursors, text(position or cursor), name)
if is_ephemeral then
  call('ZADD', ephemerals, text(now), name)
end
call('HSET', consumers, name, generation .. ' ' .. pattern)
call(
  'HSET', consumer, 'gen', generation, 'filter', filter, 'pattern', pattern, 'policy', policy, 'revision', 0,
  'moves', 0, 'cursor', text(cursor), 'missed', 0, 'exhausted', 0, 'redelivered', 0, 'seen', 0, unpack(settings)
)
if position then
  call('HSET', consumer, 'start', text(value))
end
return { 'opened', generation, 0, 1, options }
