-- Forgetting consumers.

-- An ephemeral consumer that has not fetched for so many milliseconds is gone with its process.
local ABANDONED_AFTER, MOST_SWEPT = 3600000, 4

-- Forgets where a consumer stands and what it missed.
local function forget_position(keys, name, pattern)
  local is_overtaken = call('ZSCORE', keys.lagged, name) and not call('ZSCORE', keys.cursors, name)
  call('ZREM', keys.lagged, name)
  call('ZREM', keys.cursors, name)
  if is_overtaken then
    leave_overtaken(keys.overtaken, pattern)
  end
end

-- Deletes a consumer with all that it has. The keys of its own, of which the first has its state, go first: if one of them
-- cannot be deleted, it is still known.
local function forget_consumer(keys, name, own)
  local mirror = redis.pcall('HGET', own[1], 'mirror')
  local deleted = redis.pcall('UNLINK', unpack(own))
  local known = call('HGET', keys.consumers, name)
  if type(deleted) == 'table' then
    return
  end
  if mirror == '1' then
    redis.pcall('XGROUP', 'DESTROY', keys.log, name)
  end
  if known then
    forget_position(keys, name, known:match(' (.*)$'))
  end
  call('HDEL', keys.consumers, name)
  call('ZREM', keys.ephemerals, name)
end

-- Forgets some ephemeral consumers whose processes are gone.
local function sweep(keys, now)
  local limit = text(now - ABANDONED_AFTER)
  for _, name in ipairs(call('ZRANGEBYSCORE', keys.ephemerals, '-inf', limit, 'LIMIT', 0, MOST_SWEPT)) do
    local own = keys.base .. 'c:' .. name
    forget_consumer(keys, name, { own, own .. ':due', own .. ':att', own .. ':back' })
  end
end
