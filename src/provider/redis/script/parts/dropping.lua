-- Choosing the records that a call drops, and dropping them.

-- Bytes and records that are read at once, and bytes of one call.
local MANY_BYTES, MOST_AT_ONCE, MOST_BYTES = 262144, 32, 1048576

local function new_dropped()
  return { sequences = {}, subjects = {}, ids = {}, bytes = 0 }
end

local function add_dropped(dropped, record, subject, json)
  local size = #dropped.ids + 1
  dropped.ids[size], dropped.subjects[size] = record[1], subject
  dropped.sequences[size] = tonumber(record[1]:match('^%d+'))
  -- Only the size of events was counted.
  dropped.bytes = dropped.bytes + (subject == '' and 0 or #json)
end

-- Calls `visit` with records in ascending order until it returns false or `most` were visited. Returns false at the end of
-- the range. It reads as many at once as their size so far suggests.
local function each_record(log, from, to, most, visit)
  local visited, bytes, step = 0, 0, 1
  while visited < most do
    local count = math.min(step, most - visited)
    local records = call('XRANGE', log, from, to, 'COUNT', count)
    for _, record in ipairs(records) do
      local subject, json = read_record(record)
      visited, bytes = visited + 1, bytes + #json
      if not visit(record, subject, json) then
        return true
      end
    end
    if #records < count then
      return false
    end
    from = '(' .. records[#records][1]
    step = math.max(1, math.min(2 * step, MOST_AT_ONCE, math.floor(MANY_BYTES * visited / (bytes + 1))))
  end
  return true
end

-- Takes dropped records out of the lists of their subjects. The lists are hints, so a failure does not matter.
local function unindex(keys, dropped)
  local newest, number = {}, {}
  for i, subject in ipairs(dropped.subjects) do
    newest[subject], number[subject] = dropped.sequences[i], (number[subject] or 0) + 1
  end
  newest[''] = nil
  for subject, sequence in pairs(newest) do
    local list = keys.base .. 's:' .. subject
    local entry = redis.pcall('LINDEX', list, number[subject] - 1)
    if type(entry) == 'string' and tonumber(entry) == sequence then
      redis.pcall('LPOP', list, number[subject])
    else
      -- The list does not have exactly the dropped records.
      for _ = 1, number[subject] + 64 do
        local head = redis.pcall('LINDEX', list, 0)
        if type(head) ~= 'string' or tonumber(head) > sequence then
          break
        end
        redis.pcall('LPOP', list)
      end
    end
    if redis.pcall('EXISTS', list) == 0 then
      redis.pcall('ZREM', keys.subjects, subject)
    end
  end
end

-- Drops records that are the oldest ones of the log.
local function drop_oldest(keys, dropped, wild, bytes)
  local newest = dropped.sequences[#dropped.sequences]
  count_missed(keys, dropped, wild, true)
  call('XTRIM', keys.log, 'MINID', '=', text(newest + 1))
  call('HSET', keys.meta, 'first', text(newest + 1), 'bytes', text(math.max(bytes - dropped.bytes, 0)))
  unindex(keys, dropped)
end

-- Drops the oldest records while a limit is exceeded, and returns their number and whether there may be more to drop.
local function retain(keys, stream, now)
  local count, bytes = call('XLEN', keys.log), stream.bytes
  local function exceeds()
    return (stream.max_events > 0 and count > stream.max_events)
      or (stream.max_bytes > 0 and bytes > stream.max_bytes and count > 1)
  end
  if count == 0 or not (exceeds() or stream.max_age > 0) then
    return 0, false
  end
  local wild = wild_patterns(keys.overtaken)
  local most = most_droppable(keys, wild, stream.first)
  local dropped = new_dropped()
  each_record(keys.log, '-', '+', most, function(record, subject, json)
    local is_old = stream.max_age > 0 and stored_at(record, subject, now) + stream.max_age <= now
    if not exceeds() and not is_old then
      return false
    end
    add_dropped(dropped, record, subject, json)
    count, bytes = count - 1, stream.bytes - dropped.bytes
    return (exceeds() or stream.max_age > 0) and dropped.bytes < MOST_BYTES
  end)
  if #dropped.ids > 0 then
    drop_oldest(keys, dropped, wild, stream.bytes)
  end
  return #dropped.ids, #dropped.ids == most or dropped.bytes >= MOST_BYTES
end
