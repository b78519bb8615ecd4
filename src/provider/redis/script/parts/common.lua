-- What all scripts share.

local call = redis.call

-- Elements of one command: `unpack` ends near 8,000.
local CHUNK = 1000

-- Writes a number in full, where `tostring` keeps 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

-- The time of the server in milliseconds, or the one that a test forces.
local function time_now(forced)
  if forced then
    return tonumber(forced)
  end
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Runs a command on any number of elements.
local function bulk(command, key, elements)
  for from = 1, #elements, CHUNK do
    call(command, key, unpack(elements, from, math.min(from + CHUNK - 1, #elements)))
  end
end

-- Reads what a command answers for each of any number of elements; what is absent is false.
local function bulk_read(command, key, elements)
  if #elements == 0 then
    return {}
  elseif #elements <= CHUNK then
    return call(command, key, unpack(elements))
  end
  local found = {}
  for from = 1, #elements, CHUNK do
    local part = call(command, key, unpack(elements, from, math.min(from + CHUNK - 1, #elements)))
    for i, value in ipairs(part) do
      found[from + i - 1] = value
    end
  end
  return found
end
