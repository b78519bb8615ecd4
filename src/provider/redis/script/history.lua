#!lua flags=no-writes
-- Reads records of a range, newest first. With lists, reads the records that they name. Without any, and if the log may
-- hold records that no list names, walks back through the log.
--
-- KEYS: log meta list...
-- ARGV: since before since_time before_time records bytes looked pattern [time]
--   The first four bound the range, and may be empty; the next three limit the work.
-- Reply: nothing if the range is empty, else SINCE SEARCHED_FROM IS_INDEXED LOOKED {id subject json ...}

local log, meta = KEYS[1], KEYS[2]
local most_records, room, most_looked, pattern = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
-- Records that are read at once, as many as are not large, and bytes to walk over.
local AT_ONCE, MOST_AT_ONCE, LARGE, MOST_BYTES = 4, 256, 65536, 4194304
-- Entries of a list that are read at once.
local MOST_ENTRIES = 64

local first, behind = bounds(log, meta, ARGV[9])
if not first then
  return {}
end
local since = math.max(first, tonumber(ARGV[1]) or 0)
local before = math.min(behind, tonumber(ARGV[2]) or behind)
if ARGV[3] ~= '' and since < before then
  since = first_since(log, since, before, tonumber(ARGV[3]))
end
if ARGV[4] ~= '' and since < before then
  before = first_since(log, since, before, tonumber(ARGV[4]))
end
if since >= before then
  return {}
end

-- A record that another program wrote is in no list. The last one that a publish met is the gap.
local last, gap = unpack(call('HMGET', meta, 'last', 'gap'))
local is_indexed = behind - 1 <= tonumber(last or 0) and tonumber(gap or 0) < first

local records, found, looked = {}, 0, 0

local function add(record, subject, json)
  local size = #records
  records[size + 1], records[size + 2], records[size + 3] = record[1], subject, json
  found, room = found + 1, room - #json
end

local function is_full()
  return found >= most_records or room <= 0
end

-- Walks back through the log. Returns the lowest sequence that was searched.
local function walk()
  local takes = filter_of(pattern)
  local at_once, walked = AT_ONCE, 0
  while not is_full() and looked < most_looked and walked < MOST_BYTES do
    local count = math.min(at_once, most_looked - looked)
    if pattern == '' then
      count = math.min(count, most_records - found)
    end
    local read, bytes = call('XREVRANGE', log, text(before - 1), text(since), 'COUNT', count), 0
    for _, record in ipairs(read) do
      local subject, json = read_record(record)
      looked, bytes = looked + 1, bytes + #json
      if takes(subject) then
        add(record, subject, json)
        if is_full() then
          return sequence_of(record)
        end
      end
    end
    if #read < count then
      return since
    end
    before, walked = sequence_of(read[#read]), walked + bytes
    at_once = bytes < LARGE and math.min(at_once * 2, MOST_AT_ONCE) or math.max(math.floor(at_once / 2), 1)
  end
  return before
end

-- Restores the order of a heap whose item at a place may be lower than those below it.
local function sink(heap, place)
  local item = heap[place]
  while true do
    local child = place * 2
    if heap[child + 1] and heap[child + 1].sequence > heap[child].sequence then
      child = child + 1
    end
    if not heap[child] or heap[child].sequence <= item.sequence then
      heap[place] = item
      return
    end
    heap[place] = heap[child]
    place = child
  end
end

-- Returns a heap of the lists that have entries in the range, each at its newest one.
local function heads()
  local heap = {}
  for i = 3, #KEYS do
    local distance, sequence = last_below(KEYS[i], before)
    if sequence >= since then
      heap[#heap + 1] = { list = KEYS[i], distance = distance, sequence = sequence }
    end
  end
  for place = math.floor(#heap / 2), 1, -1 do
    sink(heap, place)
  end
  return heap
end

-- Moves to the next older entry of a list. Returns whether it is in the range.
local function advance(head)
  if not head.entries or #head.entries == 0 then
    head.at_once = math.min((head.at_once or 1) * 2, MOST_ENTRIES)
    head.entries = call('LRANGE', head.list, -head.distance - head.at_once, -head.distance - 1)
    head.distance = head.distance + #head.entries
  end
  local oldest = table.remove(head.entries)
  head.sequence = oldest and tonumber(oldest) or -1
  return head.sequence >= since
end

-- Merges the lists. Returns the lowest sequence that was searched.
local function merge()
  local heap, added = heads(), before
  while heap[1] and not is_full() and looked < most_looked do
    local head = heap[1]
    -- An entry is a hint: its record may be gone, or have another subject.
    if head.sequence < added then
      local sequence = text(head.sequence)
      local record = call('XRANGE', log, sequence, sequence, 'COUNT', 1)[1]
      looked = looked + 1
      if record then
        local subject, json = read_record(record)
        -- The key of the log is as long as what is in front of the subject, and one byte of it.
        if subject == head.list:sub(#log) then
          add(record, subject, json)
          added = head.sequence
        end
      end
    end
    if not advance(head) then
      heap[1] = heap[#heap]
      heap[#heap] = nil
    end
    if heap[2] then
      sink(heap, 1)
    end
  end
  return heap[1] and math.min(heap[1].sequence + 1, added) or since
end

local searched_from
if #KEYS > 2 and is_indexed then
  searched_from = merge()
else
  searched_from = walk()
end
return { since, searched_from, is_indexed and 1 or 0, looked, records }
