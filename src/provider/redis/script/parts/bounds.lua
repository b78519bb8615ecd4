-- Bounds of the log, and times of storage in it.

local function sequence_of(record)
  return tonumber(record[1]:match('^%d+'))
end

local function time_of(record)
  return tonumber(record[1]:match('%d+$'))
end

-- A record that another program wrote can have any time in its id, so that it is skipped where times are compared. Of
-- very many in a row some are not skipped.
local MOST_SKIPPED = 1024

-- Returns the first record of an event in a range whose storage time is at least `floor`.
local function first_timed(log, from, before, floor)
  local count, skipped = 1, 0
  while from < before and skipped < MOST_SKIPPED do
    local records = call('XRANGE', log, text(from), text(before - 1), 'COUNT', count)
    for _, record in ipairs(records) do
      if read_record(record) ~= '' and time_of(record) >= floor then
        return record
      end
    end
    if #records < count then
      return nil
    end
    from = sequence_of(records[#records]) + 1
    skipped = skipped + count
    count = math.min(count * 2, 64)
  end
end

-- Returns the first sequence of a range that was stored at this time or later, or the end of the range. Halves, because
-- storage times never decrease.
local function first_since(log, from, before, time)
  local oldest = first_timed(log, from, before, 0)
  if not oldest or time_of(oldest) >= time then
    return from
  end
  local low, high, floor, found = sequence_of(oldest) + 1, before, time_of(oldest), before
  while low < high do
    local middle = low + math.floor((high - low) / 2)
    local record = first_timed(log, middle, high, floor)
    if record and time_of(record) < time then
      low = sequence_of(record) + 1
    else
      high, found = middle, record and sequence_of(record) or found
    end
  end
  return found
end

-- Returns the first sequence that is not older than the limit of the stream, the sequence behind the last one, and the
-- first one of any age. Returns nothing if the log is empty.
local function bounds(log, meta, forced_time)
  local oldest = call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not oldest then
    return nil
  end
  local newest = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local first, behind = sequence_of(oldest), sequence_of(newest) + 1
  local max_age = tonumber(call('HGET', meta, 'max_age') or 0)
  if max_age == 0 then
    return first, behind, first
  end
  return first_since(log, first, behind, time_now(forced_time) - max_age + 1), behind, first
end
