-- Records of the log. Each has an id of its sequence and its time of storage, and the fields `s` (subject) and `e` (JSON).

-- Returns subject and JSON. A record that another program wrote has an empty subject, which no event has.
local function read_record(record)
  local fields = record[2]
  if fields[1] == 's' and fields[3] == 'e' then
    return fields[2], fields[4]
  end
  return '', table.concat(fields, ' ')
end

-- Returns the time of storage. The id of a record of another program usually begins with the time.
local function stored_at(record, subject, now)
  local first, second = record[1]:match('^(%d+)%-(%d+)$')
  if subject ~= '' then
    return tonumber(second)
  end
  return tonumber(first) <= now and tonumber(first) or 0
end

-- Returns a function that tells whether a filter takes a subject. A record without a subject is in every filter, because
-- a consumer must learn of it.
local function filter_of(pattern)
  local known = { [''] = true }
  return function(subject)
    local takes = known[subject]
    if takes == nil then
      takes = subject:find(pattern) ~= nil
      known[subject] = takes
    end
    return takes
  end
end
