-- Mirror groups. A durable consumer can have a consumer group of its name on the log, which shows other programs where it
-- stands. No script reads the group.

-- Returns the number of records ever added up to a position, or -1 if it is unknown. Without a gap in the sequences, it is
-- the sequence. A record of another program that no publish has met yet has the highest id.
local function records_until(log, meta, cursor)
  local last, gap = unpack(call('HMGET', meta, 'last', 'gap'))
  last, gap = tonumber(last), tonumber(gap or 0)
  if gap == 0 then
    return text(cursor)
  elseif cursor < gap then
    return '-1'
  end
  local info, facts = call('XINFO', 'STREAM', log), {}
  for i = 1, #info, 2 do
    facts[info[i]] = info[i + 1]
  end
  local is_known = tonumber(facts['last-generated-id']:match('^%d+')) == last
  return is_known and text(facts['entries-added'] - (last - cursor)) or '-1'
end

-- Moves the group to the position of its consumer. A group that was deleted stays deleted.
local function mirror(log, meta, name, cursor)
  local passed = call('XREVRANGE', log, text(cursor), '-', 'COUNT', 1)[1]
  local id = passed and passed[1] or '0-0'
  call('XGROUP', 'SETID', log, name, id, 'ENTRIESREAD', records_until(log, meta, cursor))
end
