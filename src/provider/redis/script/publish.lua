#!lua
-- Stores events. It checks everything before it writes. Nothing that was stored can be taken back, so what may fail comes
-- last.
--
-- KEYS: log meta subjects ids id_queue cursors overtaken consumers lagged, and the lists of the events' subjects
-- ARGV: epoch base channel count (subject msg_id expected_sequence json)... [time]
-- Reply: replaced | exhausted | ok HAS_SURPLUS FIRST {INDEX ANSWER ...}. Events that are not listed were stored, with
--        sequences from FIRST on. An answer is the sequence of the first event with that id, or `!` and the last sequence.

local log, meta, subjects, ids, id_queue, cursors = unpack(KEYS, 1, 6)
local base, count = ARGV[2], tonumber(ARGV[4])
local ENTRIES, WIDTH = 5, 4
local HIGHEST_SEQUENCE = 9007199254740991

local epoch, stream = read_stream(meta)
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local now = time_now(ARGV[ENTRIES + WIDTH * count])
-- Storage times never fall, even if the clock does, so that halving finds them.
local ms = math.max(stream.ms, now)
local was_behind_since = stream.behind_since
if now >= stream.ms then
  stream.behind_since = 0
elseif was_behind_since == 0 then
  stream.behind_since = now
end

local msg_ids = {}
for at = ENTRIES, ENTRIES + WIDTH * count - 1, WIDTH do
  if ARGV[at + 1] ~= '' then
    msg_ids[#msg_ids + 1] = ARGV[at + 1]
  end
end
local dedup = #msg_ids > 0 and load_dedup()
local known = dedup and dedup.find(ids, msg_ids, stream, now) or {}

-- Decides about each event, given the last sequence.
local function plan(last)
  local events, sequences, names, lists, first_of, new_ids, answers = {}, {}, {}, {}, {}, {}, {}
  local stored = 0
  for i = 1, count do
    local at = ENTRIES + WIDTH * (i - 1)
    local subject, msg_id, expected = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local first = msg_id ~= '' and (first_of[msg_id] or known[msg_id])
    -- Only the retry of a publish is a duplicate: it expects what the first one did.
    local is_retry = first and expected == text(tonumber(first) - 1)
    if expected ~= '' and expected ~= text(last) and not is_retry then
      answers[#answers + 1], answers[#answers + 2] = i, '!' .. text(last)
    elseif first then
      answers[#answers + 1], answers[#answers + 2] = i, first
    else
      last, stored = last + 1, stored + 1
      local sequence, list = text(last), lists[subject]
      events[stored], sequences[stored] = at, sequence
      if list then
        list[#list + 1] = sequence
      else
        lists[subject], names[#names + 1] = { sequence }, subject
      end
      if msg_id ~= '' and stream.dedup_window > 0 then
        first_of[msg_id], new_ids[#new_ids + 1] = sequence, msg_id
      end
    end
  end
  return {
    events = events, sequences = sequences, subjects = names, lists = lists, first_of = first_of, new_ids = new_ids,
    answers = answers, last = last, indexed = 0,
  }
end

-- Writes the log. Returns the error if the first record is refused; then none is written.
local function append(plan)
  local stamp, bytes = '-' .. text(ms), stream.bytes
  local add, first = redis.pcall, plan.sequences[1]
  -- The log takes a second id with the same sequence and a later time.
  if first and #redis.pcall('XRANGE', log, first, first, 'COUNT', 1) > 0 then
    return { err = 'the first sequence is equal or smaller than that of another program' }
  end
  for n, at in ipairs(plan.events) do
    local json = ARGV[at + 3]
    local id = add('XADD', log, plan.sequences[n] .. stamp, 's', ARGV[at], 'e', json)
    if n == 1 then
      if type(id) == 'table' then
        return id
      end
      add = call
    end
    bytes = bytes + #json
  end
  stream.bytes = bytes
end

-- These fail if a key has another type, while nothing is written.
local starting = call('ZRANGEBYSCORE', cursors, text(-ms - 1), '(0')
if dedup then
  dedup.forget(ids, id_queue, 8 + #msg_ids, stream, now)
end

local changes, planned, refused = {}, nil, nil
for _ = 1, 2 do
  planned = plan(stream.last)
  if planned.last > HIGHEST_SEQUENCE then
    return { 'exhausted' }
  end
  refused = index(subjects, base, planned) or append(planned)
  if not refused then
    break
  end
  take_back_index(subjects, base, planned)
  if not refused.err:find('equal or smaller', 1, true) then
    return refused
  end
  -- Another program wrote to the log, which raised its sequences for good.
  stream.last = highest_sequence(log)
  changes = { 'gap', text(stream.last) }
end
if refused then
  return refused
end
if #planned.events == 0 then
  return { 'ok', 0, 0, planned.answers }
end

if stream.behind_since ~= was_behind_since then
  changes[#changes + 1], changes[#changes + 2] = 'behind_since', text(stream.behind_since)
end
call('HSET', meta, 'last', text(planned.last), 'ms', text(ms), 'bytes', text(stream.bytes), unpack(changes))
local positions, entries = {}, {}
for i, name in ipairs(starting) do
  positions[2 * i - 1], positions[2 * i] = text(stream.last), name
end
bulk('ZADD', cursors, positions)
local at = '-' .. text(now)
for i, msg_id in ipairs(planned.new_ids) do
  entries[2 * i - 1], entries[2 * i] = msg_id, planned.first_of[msg_id] .. at
end
bulk('HSET', ids, entries)
bulk('RPUSH', id_queue, planned.new_ids)

local has_surplus = 0
local is_over_count = stream.max_events > 0 and call('XLEN', log) > stream.max_events
if is_over_count or stream.max_age > 0 or (stream.max_bytes > 0 and stream.bytes > stream.max_bytes) then
  local keys = {
    log = log, meta = meta, subjects = subjects, cursors = cursors, overtaken = KEYS[7], consumers = KEYS[8],
    lagged = KEYS[9], base = base,
  }
  -- If this fails, a call of its own tells why.
  local is_done, _, more = pcall(load_retain(), keys, stream, now)
  has_surplus = (more or not is_done) and 1 or 0
end
local names = #planned.subjects > 64 and '*' or table.concat(planned.subjects, '\n')
redis.pcall('PUBLISH', ARGV[3], 'e ' .. names)
return { 'ok', has_surplus, planned.sequences[1], planned.answers }
