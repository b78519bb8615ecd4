-- Tells the members of a consumer in every process that events are due again (`c`), or that the consumer was changed, moved
-- or deleted (`m`). Without the permission for the channel they learn of it later.
local function wake(channel, what, name)
  redis.pcall('PUBLISH', channel, what .. ' ' .. name)
end
