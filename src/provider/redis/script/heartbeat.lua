#!lua flags=allow-oom
-- Keeps ephemeral consumers whose members wait, and forgets some of processes that are gone.
--
-- KEYS: consumers cursors overtaken lagged ephemerals
-- ARGV: base count name... [time]
-- Reply: names that no longer exist

local keys = {
  consumers = KEYS[1], cursors = KEYS[2], overtaken = KEYS[3], lagged = KEYS[4], ephemerals = KEYS[5], base = ARGV[1],
}
local count = tonumber(ARGV[2])
local now = time_now(ARGV[3 + count])
local gone = {}
for i = 3, 2 + count do
  if call('ZSCORE', keys.ephemerals, ARGV[i]) then
    call('ZADD', keys.ephemerals, text(now), ARGV[i])
  else
    gone[#gone + 1] = ARGV[i]
  end
end
sweep(keys, now)
return gone
