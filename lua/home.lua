-- home: settles which map of homes is in force in one shard of one region, so that a bucket is lent
-- from one region at a time. docs/regions.md has the proof.
--
-- KEYS[1]  the shard's hash, as lease.lua has it; one field for each rule that has homes:
--            e:<label>     "epoch map set_us opened_us": the map of that epoch is in force here, and
--                          its buckets are lent since opened_us; 0: not yet
-- ARGV     1 time_us     as in lease.lua
--          2 primary     as in lease.lua
--          then for each rule 4: label epoch map open
--            open        0: no earlier map is to be in force here any more
--                        else the set_us that was told when that was so: now in all regions it is
-- Reply    for each rule 2: state (0: an earlier map is in force, 1: this one, not open, 2: this one,
--          open, 3: another map of this epoch), set_us
--
-- A copy of a call changes nothing more; a late one opens nothing, unless it is still this map, set at
-- that time, under the primary of then.

local KEEP_MS = 604800000 -- as in lease.lua

local format, match, max = string.format, string.match, math.max

local now = tonumber(ARGV[1])
local primary = ARGV[2]
local count = (#ARGV - 2) / 4

local names = {'f:'}
for i = 1, count do names[i + 1] = 'e:' .. ARGV[4 * i - 1] end
local stored = redis.call('HMGET', KEYS[1], unpack(names))
if now == 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local fence = 0
if primary ~= '' then
  local by, since = match(stored[1] or '', '^(%S+) (%d+)$')
  fence = by == primary and tonumber(since) or now
end

local fields = {'f:', format('%s %.0f', primary, fence)}
local reply = {}
for i = 1, count do
  local epoch, map, open = tonumber(ARGV[4 * i]), ARGV[4 * i + 1], tonumber(ARGV[4 * i + 2])
  local e, m, set, opened = match(stored[i + 1] or '', '^(%d+) (%S+) (%d+) (%d+)$')
  e, set, opened = tonumber(e or -1), tonumber(set or 0), tonumber(opened or 0)
  local state
  if e > epoch then
    state = 0
  elseif e == epoch and m ~= map then
    state = 3
  else
    -- Times of one primary never repeat, so they tell what is set anew from what was.
    if e < epoch or set < fence then set, opened = max(now, fence, set + 1), 0 end
    if open == set and opened == 0 then opened = max(now, set) end
    state = opened > 0 and 2 or 1
    fields[#fields + 1] = names[i + 1]
    fields[#fields + 1] = format('%.0f %s %.0f %.0f', epoch, map, set, opened)
  end
  reply[2 * i - 1], reply[2 * i] = state, set
end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('PEXPIRE', KEYS[1], KEEP_MS, 'NX')
redis.call('PEXPIRE', KEYS[1], KEEP_MS, 'GT')
return reply
