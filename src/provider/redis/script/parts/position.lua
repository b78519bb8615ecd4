-- Positions in the log.

-- Returns the sequence of the first record that was stored at this time or later.
local function first_stored_since(log, time, stream, now)
  local low, high, found = stream.first, stream.last, nil
  while low <= high do
    local middle = low + math.floor((high - low) / 2)
    local record = call('XRANGE', log, text(middle), '+', 'COUNT', 1)[1]
    if not record or stored_at(record, read_record(record), now) >= time then
      high = middle - 1
      found = record and tonumber(record[1]:match('^%d+')) or found
    else
      low = tonumber(record[1]:match('^%d+')) + 1
    end
  end
  return found
end
