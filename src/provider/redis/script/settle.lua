#!lua flags=allow-oom
-- Settles deliveries of one consumer: `a` acknowledges, `n` or `nDELAY` asks for redelivery, `x` restarts the lease, `r`
-- releases. With ids, a record must still have the id that was delivered: after a failover its sequence may belong to
-- another event.
--
-- KEYS: log meta consumer due attempts
-- ARGV: epoch channel name generation moves has_ids count (how sequence attempt [id])... [time]
-- Reply: for each, ok | redelivered | reset | settled | lost | closed | replaced

local log, meta, consumer, due, attempts = unpack(KEYS)
local has_ids, count = ARGV[6] ~= '', tonumber(ARGV[7])
local FIRST, WIDTH = 8, has_ids and 4 or 3
local END = FIRST + WIDTH * count

local found, ack_wait, max_pending, max_deliver, backoff, moves, seen = unpack(call(
  'HMGET', consumer, 'gen', 'ack_wait', 'max_pending', 'max_deliver', 'backoff', 'moves', 'seen'
))
local answers = {}
if found ~= ARGV[4] or moves ~= ARGV[5] then
  local is_replaced = call('HGET', meta, 'epoch') ~= ARGV[1]
  for at = FIRST, END - 1, WIDTH do
    -- The event of a deleted consumer is not redelivered, which is what its ack asks for.
    local closed = ARGV[at] == 'a' and 'ok' or 'closed'
    answers[#answers + 1] = is_replaced and 'replaced' or found == ARGV[4] and 'reset' or closed
  end
  return answers
end
ack_wait, max_deliver, seen = tonumber(ack_wait), tonumber(max_deliver), tonumber(seen)
local now = time_now(ARGV[END])

local sequences = {}
for at = FIRST, END - 1, WIDTH do
  sequences[#sequences + 1] = ARGV[at + 1]
end
local times = bulk_read('ZMSCORE', due, sequences)
local has_attempts = call('EXISTS', attempts) == 1
local stored = has_attempts and bulk_read('HMGET', attempts, sequences) or {}
local was_full = call('ZCARD', due) >= tonumber(max_pending)

-- What this call made of events: false if they are no longer pending, or what `attempts` has of them and their waits.
local states, waits, forgotten, scheduled = {}, {}, {}, {}
local exhausted, redelivered, is_due_earlier = 0, 0, false

local function forget(sequence, attempt)
  states[sequence] = false
  forgotten[#forgotten + 1] = sequence
  redelivered = redelivered - (attempt > 1 and 1 or 0)
end

local function schedule(sequence, wait, state)
  states[sequence], waits[sequence] = state, wait
  scheduled[#scheduled + 1] = sequence
end

local function backoff_after(attempt)
  local wait, number = 0, 0
  for entry in backoff:gmatch('%d+') do
    wait, number = tonumber(entry), number + 1
    if number == attempt then
      break
    end
  end
  return wait
end

local function is_another_event(sequence, id)
  local record = call('XRANGE', log, sequence, sequence, 'COUNT', 1)[1]
  return record and record[1] ~= id
end

local function settle(i, how, sequence, attempt, id)
  local state = states[sequence]
  if state == false or not times[i] then
    return 'settled'
  end
  local current, is_leased = read_attempt(state or stored[i])
  if has_ids and is_another_event(sequence, id) then
    return 'lost'
  elseif current > attempt then
    return 'redelivered'
  elseif current ~= attempt or not is_leased then
    return 'settled'
  elseif how == 'a' then
    forget(sequence, attempt)
  elseif how == 'x' then
    schedule(sequence, ack_wait, text(attempt))
  elseif how == 'r' then
    redelivered = redelivered - (attempt == 2 and 1 or 0)
    schedule(sequence, 0, '-' .. text(attempt - 1))
    is_due_earlier = true
  elseif max_deliver > 0 and attempt >= max_deliver then
    forget(sequence, attempt)
    exhausted = exhausted + 1
  else
    local wait = tonumber(how:sub(2)) or backoff_after(attempt)
    schedule(sequence, wait, '-' .. text(attempt) .. (wait > 0 and ' ' .. text(wait) or ''))
    is_due_earlier = true
  end
  return 'ok'
end

for i = 1, count do
  local at = FIRST + WIDTH * (i - 1)
  answers[i] = settle(i, ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3])
end

local changes = {}
if #scheduled + exhausted > 0 then
  if now >= seen or bound_waits(due, attempts, now, ack_wait) then
    changes[1], changes[2] = 'seen', text(now)
  end
  local times_due, numbers, first_leases = {}, {}, {}
  for _, sequence in ipairs(scheduled) do
    times_due[#times_due + 1], times_due[#times_due + 2] = text(now + waits[sequence]), sequence
    local state = states[sequence]
    if state == '1' then
      first_leases[#first_leases + 1] = sequence
    elseif state then
      numbers[#numbers + 1], numbers[#numbers + 2] = sequence, state
    end
  end
  bulk('ZADD', due, times_due)
  bulk('HSET', attempts, numbers)
  bulk('HDEL', attempts, first_leases)
end
if #forgotten > 0 then
  bulk('ZREM', due, forgotten)
  if has_attempts then
    bulk('HDEL', attempts, forgotten)
  end
  changes[#changes + 1], changes[#changes + 2] = 'progress', text(now)
end
bulk('HSET', consumer, changes)
if exhausted > 0 then
  call('HINCRBY', consumer, 'exhausted', exhausted)
end
if redelivered ~= 0 then
  call('HINCRBY', consumer, 'redelivered', redelivered)
end
if is_due_earlier or (was_full and #forgotten > 0) then
  wake(ARGV[2], 'c', ARGV[3])
end
return answers
