-- Lists of the sequences of each subject, which are written before the log: readers take an entry for a hint.

-- Appends the sequences of a plan to the lists. Returns the error if a key has another type.
local function index(subjects, base, plan)
  local new = {}
  for i, subject in ipairs(plan.subjects) do
    local list, length = plan.lists[subject], 0
    for from = 1, #list, CHUNK do
      length = redis.pcall('RPUSH', base .. 's:' .. subject, unpack(list, from, math.min(from + CHUNK - 1, #list)))
      if type(length) == 'table' then
        return length
      end
    end
    plan.indexed = i
    if length == #list then
      new[#new + 1], new[#new + 2] = 0, subject
    end
  end
  for from = 1, #new, CHUNK do
    local added = redis.pcall('ZADD', subjects, unpack(new, from, math.min(from + CHUNK - 1, #new)))
    if type(added) == 'table' then
      return added
    end
  end
end

-- Takes back what `index` did.
local function take_back_index(subjects, base, plan)
  for i = 1, plan.indexed do
    local subject = plan.subjects[i]
    local list = base .. 's:' .. subject
    call('LTRIM', list, 0, -1 - #plan.lists[subject])
    if call('EXISTS', list) == 0 then
      redis.pcall('ZREM', subjects, subject)
    end
  end
end

-- Returns the sequence of the newest id that the log ever had.
local function highest_sequence(log)
  local info = call('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return tonumber(info[i + 1]:match('^%d+'))
    end
  end
end
