#!lua flags=allow-oom
-- Deletes records up to a sequence, in steps. Without a pattern it deletes the oldest ones. With one it looks at the
-- records from a sequence on and deletes those that the filter takes.
--
-- KEYS: log meta subjects cursors overtaken consumers lagged
-- ARGV: epoch base through pattern from
-- Reply: replaced | ok DELETED THROUGH NEXT, where NEXT is empty at the end

local keys = {
  log = KEYS[1], meta = KEYS[2], subjects = KEYS[3], cursors = KEYS[4], overtaken = KEYS[5], consumers = KEYS[6],
  lagged = KEYS[7], base = ARGV[2],
}
local pattern, from = ARGV[4], ARGV[5]
local epoch, stream = read_stream(keys.meta)
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local newest = call('XREVRANGE', keys.log, '+', '-', 'COUNT', 1)[1]
local through = tonumber(ARGV[3] ~= '' and ARGV[3] or newest and newest[1]:match('^%d+') or 0)
local first = math.max(tonumber(from), stream.first)
local wild = wild_patterns(keys.overtaken)
local most = most_droppable(keys, wild, first)
local deleted, last, bytes = new_dropped(), first - 1, 0
local takes = filter_of(pattern)

local has_more = each_record(keys.log, text(first), text(through), MOST_DROPPED, function(record, subject, json)
  last, bytes = tonumber(record[1]:match('^%d+')), bytes + #json
  -- A filter deletes nothing of which it cannot be known whether it was meant.
  if pattern == '' or (subject ~= '' and takes(subject)) then
    add_dropped(deleted, record, subject, json)
  end
  return #deleted.ids < most and bytes < MOST_BYTES
end)
if #deleted.ids > 0 and pattern == '' then
  drop_oldest(keys, deleted, wild, stream.bytes)
elseif #deleted.ids > 0 then
  count_missed(keys, deleted, wild, false)
  bulk('XDEL', keys.log, deleted.ids)
  call('HSET', keys.meta, 'bytes', text(math.max(stream.bytes - deleted.bytes, 0)))
  unindex(keys, deleted)
end
return { 'ok', #deleted.ids, text(through), has_more and last < through and text(last + 1) or '' }
