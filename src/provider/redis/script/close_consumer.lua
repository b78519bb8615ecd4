#!lua flags=allow-oom
-- Deletes a consumer and its position. With a generation it deletes only that one, not another of the same name.
--
-- KEYS: consumers cursors overtaken lagged ephemerals consumer due attempts backlog
-- ARGV: channel name generation
-- Reply: {whether it existed}

local keys = {
  consumers = KEYS[1], cursors = KEYS[2], overtaken = KEYS[3], lagged = KEYS[4], ephemerals = KEYS[5],
}
local name, generation = ARGV[2], ARGV[3]
local known = call('HGET', keys.consumers, name)
if not known or (generation ~= '' and known:match('^[^ ]*') ~= generation) then
  return { 0 }
end
forget_consumer(keys, name, { KEYS[6], KEYS[7], KEYS[8], KEYS[9] })
wake(ARGV[1], name)
return { 1 }
