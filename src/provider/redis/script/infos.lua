#!lua flags=no-writes
-- Reads the state of consumers.
--
-- KEYS: log meta subjects cursors ephemerals (consumer due backlog)...
-- ARGV: name... [time]
-- Reply: FIRST BEHIND IS_GAPLESS SUBJECTS {consumer...}, where a consumer is empty if it does not exist, else
--   FILTER CURSOR PROGRESS EXHAUSTED IS_DURABLE PENDING REDELIVERED BACKLOG
--   FIRST and BEHIND are 0 without a retained record. PROGRESS is empty before the first settlement.

local log, meta, subjects, cursors, ephemerals = unpack(KEYS, 1, 5)
local count = (#KEYS - 5) / 3
local first, behind, oldest = bounds(log, meta, ARGV[count + 1])
local is_gapless = not first or behind - oldest == call('XLEN', log)

local names = { unpack(ARGV, 1, count) }
local positions, times = bulk_read('ZMSCORE', cursors, names), bulk_read('ZMSCORE', ephemerals, names)

local function read_consumer(i, consumer, due, backlog)
  local filter, progress, exhausted, redelivered =
    unpack(call('HMGET', consumer, 'filter', 'progress', 'exhausted', 'redelivered'))
  if not filter then
    return {}
  end
  -- Retention has taken the position of a consumer that it overtook. The position of one whose start time has not come
  -- is negative: it has received everything so far.
  local cursor = tonumber(positions[i]) or 0
  if cursor < 0 then
    cursor = behind and behind - 1 or 0
  end
  return {
    filter, text(cursor), progress or '', exhausted or '0', times[i] and 0 or 1,
    call('ZCARD', due), redelivered or '0', call('LLEN', backlog),
  }
end

local consumers = {}
for i = 1, count do
  local key = 3 + 3 * i
  consumers[i] = read_consumer(i, KEYS[key], KEYS[key + 1], KEYS[key + 2])
end
return { first or 0, behind or 0, is_gapless and 1 or 0, call('ZCARD', subjects), consumers }
