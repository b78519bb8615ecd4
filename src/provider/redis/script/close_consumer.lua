#!lua flags=allow-oom
-- Deletes a consumer and its position. With a generation it deletes only that one, not another of the same name.
--
-- KEYS: log consumers cursors overtaken lagged ephemerals consumer due attempts backlog
-- ARGV: channel name generation
-- Reply: {whether it existed}

local keys = {
  log = KEYS[1], consumers = KEYS[2], cursors = KEYS[3], overtaken = KEYS[4], lagged = KEYS[5], ephemerals = KEYS[6],
}
local name, generation = ARGV[2], ARGV[3]
local known = call('HGET', keys.consumers, name)
if not known or (generation ~= '' and known:match('^[^ ]*') ~= generation) then
  return { 0 }
end
forget_consumer(keys, name, { KEYS[7], KEYS[8], KEYS[9], KEYS[10] })
wake(ARGV[1], 'm', name)
return { 1 }
