-- Reads the epoch of the stream, which is false if it does not exist, and its counters and limits.
local function read_stream(meta)
  local epoch, first, last, ms, bytes, max_events, max_bytes, max_age, dedup_window, behind_since = unpack(call(
    'HMGET', meta, 'epoch', 'first', 'last', 'ms', 'bytes', 'max_events', 'max_bytes', 'max_age', 'dedup_window',
    'behind_since'
  ))
  return epoch, {
    first = tonumber(first or 0), last = tonumber(last or 0), ms = tonumber(ms or 0), bytes = tonumber(bytes or 0),
    max_events = tonumber(max_events or 0), max_bytes = tonumber(max_bytes or 0), max_age = tonumber(max_age or 0),
    dedup_window = tonumber(dedup_window or 0), behind_since = tonumber(behind_since or 0),
  }
end
