-- Pending events. Each is in the sorted set `due` with the time of its redelivery. The hash `attempts` has what differs
-- from a first delivery that is leased: `2` is the second delivery, leased; `-2 500` was delivered twice and waits for
-- 500 ms after a nak; `-0` was released after its first delivery.

-- Pending events that one call looks at.
local MOST_PENDING = 1000

-- Returns the number of deliveries, whether the last one is leased, and the wait in milliseconds if it is not.
local function read_attempt(stored)
  if not stored then
    return 1, true, 0
  end
  local sign, attempt, wait = stored:match('^(-?)(%d+) ?(%d*)$')
  return tonumber(attempt), sign == '', tonumber(wait) or 0
end

-- Shortens waits after the clock was set back, so that none lasts longer than was asked for. Returns false if some of
-- very many may still be too long.
local function bound_waits(due, attempts, now, ack_wait)
  local latest = call('ZREVRANGEBYSCORE', due, '+inf', '(' .. text(now), 'WITHSCORES', 'LIMIT', 0, MOST_PENDING)
  local sequences = {}
  for i = 1, #latest, 2 do
    sequences[#sequences + 1] = latest[i]
  end
  local stored, shorter = bulk_read('HMGET', attempts, sequences), {}
  for i, sequence in ipairs(sequences) do
    local _, is_leased, wait = read_attempt(stored[i])
    local bound = now + (is_leased and ack_wait or wait)
    if tonumber(latest[2 * i]) > bound then
      shorter[#shorter + 1] = text(bound)
      shorter[#shorter + 1] = sequence
    end
  end
  bulk('ZADD', due, shorter)
  return #sequences < MOST_PENDING or #shorter == 0
end

-- Returns pending events that are due, in the order of their sequences: first as texts, then as numbers, then whether
-- these are all. Some more than `most` are among them, because not each is delivered again.
local function due_sequences(due, now, most)
  local found = call('ZRANGEBYSCORE', due, '-inf', text(now), 'LIMIT', 0, MOST_PENDING)
  local numbers, sequences = {}, {}
  for i, sequence in ipairs(found) do
    numbers[i] = tonumber(sequence)
  end
  table.sort(numbers)
  for i = 1, math.min(#numbers, most + 64) do
    sequences[i] = text(numbers[i])
  end
  return sequences, numbers, #sequences == #numbers and #numbers < MOST_PENDING
end

-- Returns the number of entries of an ascending list that are below a bound.
local function entries_below(list, bound)
  local function is_below(index)
    local entry = call('LINDEX', list, index)
    return entry and tonumber(entry) < bound
  end
  local step = 1
  while is_below(step - 1) do
    step = step * 2
  end
  local below, not_below = math.floor(step / 2), step - 1
  while below < not_below do
    local middle = math.floor((below + not_below) / 2)
    if is_below(middle) then
      below = middle + 1
    else
      not_below = middle
    end
  end
  return below
end
