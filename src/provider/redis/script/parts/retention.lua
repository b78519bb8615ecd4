-- Counting for each consumer what it missed of dropped records.
--
-- A consumer that retention overtakes leaves `cursors` and joins the count of its filter. Its score in `lagged` is the
-- count at which it had missed nothing. So a drop costs work for each filter, not for each consumer. A consumer that has
-- a score and is in `cursors` missed the negative of the score.

-- Records that one call drops, and comparisons of a dropped record with a filter.
local MOST_DROPPED, MOST_COMPARED = 512, 4096

-- Returns the pattern that finds exactly this subject.
local function literal_pattern(subject)
  return '^' .. subject:gsub('%p', '%%%0') .. '$'
end

-- Returns the patterns with a wildcard that overtaken consumers have.
local function wild_patterns(overtaken)
  local patterns = {}
  for pattern in (call('HGET', overtaken, '*') or ''):gmatch('[^\n]+') do
    patterns[#patterns + 1] = pattern
  end
  return patterns
end

-- Returns the number of records from `first` on that a call may drop. Each is compared with the filters of the consumers
-- that were overtaken before, or are now.
local function most_droppable(keys, wild, first)
  local filters = #wild + call('ZCOUNT', keys.cursors, 0, '(' .. text(first + MOST_DROPPED))
  return math.max(4, math.min(MOST_DROPPED, math.floor(MOST_COMPARED / math.max(filters, 1))))
end

-- Returns a function that counts the dropped records that a pattern finds after a cursor. Records without a subject
-- count for every filter.
local function counter(dropped)
  local sequences, subjects = dropped.sequences, dropped.subjects
  local by_subject, literals, totals, tails = { [''] = 0 }, {}, { [''] = #sequences }, {}
  for _, subject in ipairs(subjects) do
    by_subject[subject] = (by_subject[subject] or 0) + 1
  end
  for subject, number in pairs(by_subject) do
    literals[literal_pattern(subject)] = number
  end

  local function total_of(pattern)
    local total = by_subject['']
    if not is_wild(pattern) then
      return total + (literals[pattern] or 0)
    end
    for subject, number in pairs(by_subject) do
      total = total + (subject:find(pattern) and number or 0)
    end
    return total
  end

  -- Numbers of matches from each dropped record on.
  local function tails_of(pattern)
    local takes, counts = filter_of(pattern), { [#sequences + 1] = 0 }
    for i = #sequences, 1, -1 do
      counts[i] = counts[i + 1] + (takes(subjects[i]) and 1 or 0)
    end
    return counts
  end

  local function first_after(cursor)
    local low, high = 1, #sequences + 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sequences[middle] <= cursor then
        low = middle + 1
      else
        high = middle
      end
    end
    return low
  end

  local function count(pattern, cursor)
    if cursor < sequences[1] then
      totals[pattern] = totals[pattern] or total_of(pattern)
      return totals[pattern]
    end
    tails[pattern] = tails[pattern] or tails_of(pattern)
    return tails[pattern][first_after(cursor)]
  end
  return count, literals
end

-- Adds what the consumers that were overtaken before missed to the counts of their filters.
local function count_for_overtaken(overtaken, wild, count, literals)
  local patterns, fields, changes = { '' }, {}, {}
  for _, pattern in ipairs(wild) do
    patterns[#patterns + 1] = pattern
  end
  for pattern in pairs(literals) do
    patterns[#patterns + 1] = pattern
  end
  for i, pattern in ipairs(patterns) do
    fields[i] = '=' .. pattern
  end
  for i, total in ipairs(bulk_read('HMGET', overtaken, fields)) do
    local missed = total and count(patterns[i], 0) or 0
    if missed > 0 then
      changes[#changes + 1], changes[#changes + 2] = fields[i], text(total + missed)
    end
  end
  bulk('HSET', overtaken, changes)
end

-- Returns the consumers with a cursor before a sequence: names, cursors, patterns, and scores in `lagged`.
local function consumers_behind(keys, newest)
  local behind = call('ZRANGEBYSCORE', keys.cursors, 0, '(' .. text(newest), 'WITHSCORES')
  local names, cursors, patterns = {}, {}, {}
  for i = 1, #behind, 2 do
    names[#names + 1], cursors[#cursors + 1] = behind[i], tonumber(behind[i + 1])
  end
  for i, known in ipairs(bulk_read('HMGET', keys.consumers, names)) do
    patterns[i] = known and known:match(' (.*)$') or ''
  end
  return names, cursors, patterns, bulk_read('ZMSCORE', keys.lagged, names)
end

-- Puts consumers into the counts of their filters. Returns the totals by pattern.
local function join_overtaken(overtaken, wild, patterns)
  local totals, members, distinct, fields, changes = {}, {}, {}, {}, {}
  for _, pattern in ipairs(patterns) do
    if not members[pattern] then
      distinct[#distinct + 1] = pattern
      fields[#fields + 1], fields[#fields + 2] = '=' .. pattern, '#' .. pattern
    end
    members[pattern] = (members[pattern] or 0) + 1
  end
  local values, count_before = bulk_read('HMGET', overtaken, fields), #wild
  for i, pattern in ipairs(distinct) do
    local total, before = values[2 * i - 1], values[2 * i]
    totals[pattern] = tonumber(total or 0)
    changes[#changes + 1], changes[#changes + 2] = '#' .. pattern, text((before or 0) + members[pattern])
    if not total then
      changes[#changes + 1], changes[#changes + 2] = '=' .. pattern, '0'
      wild[#wild + 1] = is_wild(pattern) and pattern or nil
    end
  end
  if #wild > count_before then
    changes[#changes + 1], changes[#changes + 2] = '*', '\n' .. table.concat(wild, '\n') .. '\n'
  end
  bulk('HSET', overtaken, changes)
  return totals
end

-- Counts what consumers missed of dropped records. With `overtakes`, the log has nothing before the newest of them.
local function count_missed(keys, dropped, wild, overtakes)
  local count, literals = counter(dropped)
  local newest = dropped.sequences[#dropped.sequences]
  local names, cursors, patterns, scores = consumers_behind(keys, newest)
  count_for_overtaken(keys.overtaken, wild, count, literals)
  if #names == 0 then
    return
  end
  local totals = overtakes and join_overtaken(keys.overtaken, wild, patterns) or {}
  local changes = {}
  for i, name in ipairs(names) do
    local missed = count(patterns[i], cursors[i])
    if overtakes or missed > 0 then
      local score = (scores[i] or 0) - missed + (totals[patterns[i]] or 0)
      changes[#changes + 1], changes[#changes + 2] = text(score), name
    end
  end
  bulk('ZADD', keys.lagged, changes)
  if overtakes then
    bulk('ZREM', keys.cursors, names)
  end
end
