-- Lists of ascending sequences. Entries are looked up by their distance from the tail, because most of what is asked for
-- is near it.

-- Number of entries that were looked up.
local probes = 0

-- Returns the entry of a list at a distance from its tail, which is at distance 1. In front of the head all are -1.
local function entry(list, distance)
  probes = probes + 1
  return tonumber(call('LINDEX', list, -distance)) or -1
end

-- Returns the distance from the tail of the last entry below a bound, and that entry. Gallops from the tail, because
-- most bounds are near it, then halves.
local function last_below(list, bound)
  local near, far = 0, 1
  local found = entry(list, far)
  while found >= bound do
    near, far = far, far * 2
    found = entry(list, far)
  end
  while far - near > 1 do
    local middle = math.floor((near + far) / 2)
    local value = entry(list, middle)
    if value >= bound then
      near = middle
    else
      far, found = middle, value
    end
  end
  return far, found
end
