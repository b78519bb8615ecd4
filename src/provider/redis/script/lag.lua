#!lua flags=no-writes
-- Counts the entries of ascending lists after a sequence each.
--
-- KEYS: list...
-- ARGV: sequence...
-- Reply: the counts of the first lists, at least of one

-- Entries that one call looks up.
local MOST_PROBES = 1000

local counts = {}
for i, list in ipairs(KEYS) do
  local after = tonumber(ARGV[i])
  local head = tonumber(call('LINDEX', list, 0))
  if not head then
    counts[i] = 0
  elseif head > after then
    counts[i] = call('LLEN', list)
  else
    counts[i] = last_below(list, after + 1) - 1
  end
  probes = probes + 1
  if probes >= MOST_PROBES then
    break
  end
end
return counts
