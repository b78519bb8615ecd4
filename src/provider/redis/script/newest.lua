#!lua flags=no-writes
-- Finds the newest record of each subject up to a sequence. The entries of the lists are hints.
--
-- KEYS: log meta, lists of sequences by subject
-- ARGV: epoch through
-- Reply: replaced | ok SEQUENCE...

local log, meta = KEYS[1], KEYS[2]
local epoch, stream = read_stream(meta)
if epoch ~= ARGV[1] then
  return { 'replaced' }
end
local through = tonumber(ARGV[2])

local function newest_of(list)
  local subject = list:sub(#log)
  for index = -1, -1000, -1 do
    local sequence = call('LINDEX', list, index)
    if not sequence or tonumber(sequence) < stream.first then
      return nil
    end
    if tonumber(sequence) <= through then
      local record = call('XRANGE', log, sequence, sequence, 'COUNT', 1)[1]
      if record and read_record(record) == subject then
        return sequence
      end
    end
  end
end

local reply = { 'ok' }
for i = 3, #KEYS do
  reply[#reply + 1] = newest_of(KEYS[i])
end
return reply
