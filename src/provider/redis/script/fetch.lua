#!lua flags=allow-oom
-- Leases the next events of a consumer: first those that are due again, in the order of their sequences, then its
-- backlog, then matches after its cursor. If events were dropped before it received them, it tells their number instead.
--
-- KEYS: log meta consumer due attempts backlog cursors overtaken lagged ephemerals
-- ARGV: epoch name generation events bytes is_ephemeral [time]
-- Reply: replaced | gone | missed COUNT | ok WAIT MORE MOVES REVISION AGAIN {sequence attempt id subject json ...}. The first
--        AGAIN events were due again.

local log, meta, consumer, due, attempts, backlog, cursors, overtaken, lagged, ephemerals = unpack(KEYS)
local name, max, room = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = time_now(ARGV[7])

local epoch, first = unpack(call('HMGET', meta, 'epoch', 'first'))
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local fields = call(
  'HMGET', consumer, 'gen', 'pattern', 'ack_wait', 'max_pending', 'max_deliver', 'cursor', 'missed', 'moves', 'revision',
  'seen', 'start', 'mirror'
)
local found, pattern, ack_wait, max_pending, max_deliver = unpack(fields, 1, 5)
local cursor, missed, moves, revision, seen, start, mirrors = unpack(fields, 6)
if found ~= ARGV[3] then
  return { 'gone' }
end
first, cursor, missed, seen = tonumber(first), tonumber(cursor), tonumber(missed), tonumber(seen)
ack_wait, max_pending, max_deliver = tonumber(ack_wait), tonumber(max_pending), tonumber(max_deliver)
local old_cursor, old_missed, old_seen = cursor, missed, seen
if now < seen and bound_waits(due, attempts, now, ack_wait) then
  seen = now
end

-- A consumer whose start time has not come stands at a negative position; a publish then gives it a cursor. Retention
-- counts for all consumers of a filter that it overtook together, and purging for each one.
local debt = call('ZSCORE', lagged, name)
local position = (debt or start) and call('ZSCORE', cursors, name)
local is_waiting = position and tonumber(position) < 0
local is_overtaken = debt and not position
if is_overtaken then
  missed = missed + tonumber(call('HGET', overtaken, '=' .. pattern) or 0)
  cursor = first - 1
elseif start and position and not is_waiting then
  cursor = tonumber(position)
end
if debt then
  missed = missed - tonumber(debt)
end
local next_of_backlog, popped = call('LINDEX', backlog, 0), 0
if next_of_backlog and tonumber(next_of_backlog) < first then
  popped = entries_below(backlog, first)
  missed = missed + popped
end

local deliveries, leases, given = {}, {}, 0
local forgotten, states, first_leases = {}, {}, {}
local exhausted, redelivered, vanished = 0, 0, 0
local lease_end = text(now + ack_wait)

local function give(sequence, attempt, id, subject, json)
  local size = 5 * given
  deliveries[size + 1], deliveries[size + 2], deliveries[size + 3] = sequence, attempt, id
  deliveries[size + 4], deliveries[size + 5] = subject, json
  leases[2 * given + 1], leases[2 * given + 2] = lease_end, sequence
  given, room = given + 1, room - #json
end

-- Delivers the record of a sequence. If it was purged, it counts as missed.
local function give_stored(sequence, attempt)
  local record = call('XRANGE', log, sequence, sequence, 'COUNT', 1)[1]
  if record then
    give(sequence, attempt, record[1], read_record(record))
  else
    vanished = vanished + 1
  end
  return record
end

local function forget(sequence, attempt)
  forgotten[#forgotten + 1] = sequence
  redelivered = redelivered - (attempt > 1 and 1 or 0)
end

-- Delivers what is due again. Returns whether that was all, so that first deliveries may follow.
local function give_due()
  local sequences, numbers, are_all = due_sequences(due, now, max)
  local stored = bulk_read('HMGET', attempts, sequences)
  for i, sequence in ipairs(sequences) do
    if given == max or room <= 0 then
      return false
    end
    local attempt = read_attempt(stored[i])
    if numbers[i] < first then
      missed = missed + 1
      forget(sequence, attempt)
    elseif max_deliver > 0 and attempt >= max_deliver then
      exhausted = exhausted + 1
      forget(sequence, attempt)
    elseif missed > 0 then
      return false
    elseif not give_stored(sequence, attempt + 1) then
      forget(sequence, attempt)
    elseif attempt == 0 then
      first_leases[#first_leases + 1] = sequence
    else
      states[#states + 1], states[#states + 2] = sequence, attempt + 1
      redelivered = redelivered + (attempt == 1 and 1 or 0)
    end
  end
  return are_all
end

-- Delivers from the backlog. Returns whether it is empty, so that the log may follow.
local function give_backlog(last)
  local most = popped + MOST_PENDING
  while given < last and room > 0 and popped < most do
    local wanted = last - given
    local sequences = call('LRANGE', backlog, popped, popped + wanted - 1)
    for _, sequence in ipairs(sequences) do
      if room <= 0 then
        return false
      end
      give_stored(sequence, 1)
      popped = popped + 1
    end
    if #sequences < wanted then
      return true
    end
  end
  return false
end

-- Delivers matches after the cursor and moves it. Returns whether there may be more for which there is room. It reads as
-- many records at once as their size so far suggests.
local function give_matches(last)
  local MOST_SCANNED, MOST_AT_ONCE, MANY_BYTES = 1000, 32, 262144
  local takes = pattern ~= '' and filter_of(pattern)
  local from, scanned, bytes, step = text(cursor + 1), 0, 0, 1
  while given < last and room > 0 and scanned < MOST_SCANNED and bytes < 4 * MANY_BYTES do
    local count = takes and step or math.min(step, last - given)
    local records = call('XRANGE', log, from, '+', 'COUNT', count)
    for _, record in ipairs(records) do
      local id = record[1]
      local sequence = id:match('^%d+')
      local subject, json = read_record(record)
      local number = tonumber(sequence)
      -- The second record of a sequence, which only another program writes, cannot be leased.
      if number > cursor and (not takes or takes(subject)) then
        if given == last or room <= 0 then
          return given < last
        end
        give(sequence, 1, id, subject, json)
      end
      cursor, bytes = number, bytes + #json
    end
    if #records < count then
      return false
    end
    scanned = scanned + count
    from = '(' .. records[#records][1]
    step = math.max(1, math.min(8 * step, MOST_AT_ONCE, math.floor(MANY_BYTES * scanned / (bytes + 1))))
  end
  return given < last
end

local is_all_due, more = give_due(), false
local again = given
if missed == 0 and not is_all_due then
  more = given < max
elseif missed == 0 then
  local vacant = math.min(max - given, max_pending - (call('ZCARD', due) - #forgotten))
  local last = given + vacant
  if vacant > 0 then
    local is_empty = not next_of_backlog or give_backlog(last)
    local has_more = not is_empty or (not is_waiting and give_matches(last))
    more = has_more and given < last
  end
end

-- Writes. What was not read before comes first: if its key has another type, nothing has changed.
if cursor ~= old_cursor or is_overtaken then
  call('ZADD', cursors, text(cursor), name)
end
if ARGV[6] ~= '' then
  call('ZADD', ephemerals, text(now), name)
end
if debt then
  call('ZREM', lagged, name)
end
if is_overtaken then
  leave_overtaken(overtaken, pattern)
end
if popped > 0 then
  call('LTRIM', backlog, popped, -1)
end
if #forgotten > 0 then
  bulk('ZREM', due, forgotten)
  bulk('HDEL', attempts, forgotten)
end
bulk('ZADD', due, leases)
bulk('HSET', attempts, states)
bulk('HDEL', attempts, first_leases)
if given > 0 then
  seen = math.max(seen, now)
end
if cursor ~= old_cursor or seen ~= old_seen or vanished ~= old_missed then
  call('HSET', consumer, 'cursor', text(cursor), 'seen', text(seen), 'missed', vanished)
end
if start and not is_waiting then
  call('HDEL', consumer, 'start')
end
if exhausted > 0 then
  call('HINCRBY', consumer, 'exhausted', exhausted)
end
if redelivered ~= 0 then
  call('HINCRBY', consumer, 'redelivered', redelivered)
end
if mirrors and cursor ~= old_cursor then
  -- A display that cannot be moved disturbs no delivery.
  pcall(load_mirror(), log, meta, name, cursor)
end

if missed > 0 then
  return { 'missed', text(missed) }
end
local earliest = call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
local wait = earliest and text(math.max(tonumber(earliest) - now, 0)) or ''
return { 'ok', wait, (more or vanished > 0) and 1 or 0, moves, revision, again, deliveries }
