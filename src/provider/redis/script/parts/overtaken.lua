-- Counts of the consumers that retention overtook, by the pattern of their filter. The hash `overtaken` has in `=PATTERN`
-- the number of dropped matches, in `#PATTERN` that of the consumers, and in `*` the patterns with a wildcard, between line
-- breaks. Filters without one are looked up by the subject.

local function is_wild(pattern)
  return pattern:find('[^.]', 1, true) ~= nil
end

-- Takes a consumer out of the count of its filter. The last one ends the count.
local function leave_overtaken(overtaken, pattern)
  if call('HINCRBY', overtaken, '#' .. pattern, -1) > 0 then
    return
  end
  call('HDEL', overtaken, '#' .. pattern, '=' .. pattern)
  if is_wild(pattern) then
    local wild = call('HGET', overtaken, '*') or ''
    local from, to = wild:find('\n' .. pattern .. '\n', 1, true)
    if from then
      call('HSET', overtaken, '*', wild:sub(1, from) .. wild:sub(to + 1))
    end
  end
end
