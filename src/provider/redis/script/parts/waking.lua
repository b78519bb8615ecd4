-- Wakes the members of a consumer in every process. Without the permission for the channel they learn of it later.
local function wake(channel, name)
  redis.pcall('PUBLISH', channel, 'c ' .. name)
end
