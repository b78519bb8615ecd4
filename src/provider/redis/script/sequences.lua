#!lua flags=no-writes
-- Reads the entries of ascending lists after a sequence each.
--
-- KEYS: list...
-- ARGV: entries sequence...
-- Reply: {entry...} of the first lists, at least of one. If these are as many entries as asked for, the last list may
--   have more.

-- Entries that one call looks up.
local MOST_PROBES = 1000

local room, reply = tonumber(ARGV[1]), {}
for i, list in ipairs(KEYS) do
  local after = last_below(list, tonumber(ARGV[i + 1]) + 1) - 1
  local entries = {}
  if after > 0 then
    entries = call('LRANGE', list, -after, math.min(room - after, 0) - 1)
  end
  reply[i] = entries
  room = room - #entries
  if room <= 0 or probes >= MOST_PROBES then
    break
  end
end
return reply
