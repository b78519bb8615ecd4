-- `msg_id`s. The hash `ids` has the sequence and the time of the event that was stored with each, as `SEQUENCE-TIME`, and
-- the list `id_queue` has them in the order of their events.

-- Returns the sequence in an entry of `ids`, unless it is older than the window. A time from a clock that was ahead counts
-- as the one at which that was noticed.
local function in_window(entry, stream, now)
  local sequence, at = entry:match('^(%d+)%-(%d+)$')
  at = tonumber(at)
  if at > now and stream.behind_since > 0 then
    at = stream.behind_since
  end
  return at + stream.dedup_window > now and sequence
end

local dedup = {}

-- Returns the sequences of the first events with these ids.
function dedup.find(ids, msg_ids, stream, now)
  local known = {}
  for i, entry in ipairs(bulk_read('HMGET', ids, msg_ids)) do
    if entry then
      known[msg_ids[i]] = in_window(entry, stream, now)
    end
  end
  return known
end

-- Forgets ids that are older than the window.
function dedup.forget(ids, id_queue, most, stream, now)
  for _ = 1, most do
    local oldest = call('LINDEX', id_queue, 0)
    local entry = oldest and call('HGET', ids, oldest)
    if not oldest or (entry and in_window(entry, stream, now)) then
      return
    end
    call('LPOP', id_queue)
    call('HDEL', ids, oldest)
  end
end
