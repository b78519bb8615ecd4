#!lua flags=allow-oom
-- Deletes a part of the stream. The first call deletes what makes it a stream, so that everybody loses it at once.
--
-- KEYS: log meta subjects ids id_queue consumers ephemerals cursors overtaken lagged
-- ARGV: base
-- Reply: {whether there is more}

local MOST = 500
local base = ARGV[1]

call('UNLINK', KEYS[2], KEYS[1], KEYS[4], KEYS[5])
local subjects = call('ZRANGE', KEYS[3], 0, MOST - 1)
if #subjects > 0 then
  local lists = {}
  for i, subject in ipairs(subjects) do
    lists[i] = base .. 's:' .. subject
  end
  call('UNLINK', unpack(lists))
  call('ZREM', KEYS[3], unpack(subjects))
  return { 1 }
end
local names = call('HSCAN', KEYS[6], 0, 'COUNT', MOST)[2]
for i = 1, #names, 2 do
  local name = base .. 'c:' .. names[i]
  call('UNLINK', name, name .. ':due', name .. ':att', name .. ':back')
  call('HDEL', KEYS[6], names[i])
end
if call('EXISTS', KEYS[6]) == 1 then
  return { 1 }
end
call('UNLINK', KEYS[3], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10])
return { 0 }
