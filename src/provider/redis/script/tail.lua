#!lua flags=no-writes
-- Reads the subjects of records in ascending order. The subject of a record that another program wrote is empty.
--
-- KEYS: log
-- ARGV: first last count
-- Reply: {sequence subject ...}, empty behind the last record

local log, from, last, most = KEYS[1], ARGV[1], ARGV[2], 2 * tonumber(ARGV[3])
-- Records that are read at once, as many as are not large, and bytes to walk over.
local AT_ONCE, MOST_AT_ONCE, LARGE, MOST_BYTES = 4, 256, 65536, 4194304

local reply, at_once, walked = {}, AT_ONCE, 0
while #reply < most and walked < MOST_BYTES do
  local records, bytes = call('XRANGE', log, from, last, 'COUNT', at_once), 0
  for _, record in ipairs(records) do
    local subject, json = read_record(record)
    local size = #reply
    reply[size + 1], reply[size + 2] = record[1]:match('^%d+'), subject
    bytes = bytes + #json
  end
  if #records < at_once then
    break
  end
  from, walked = '(' .. records[#records][1], walked + bytes
  at_once = bytes < LARGE and math.min(at_once * 2, MOST_AT_ONCE) or math.max(math.floor(at_once / 2), 1)
end
return { reply }
