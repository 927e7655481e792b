-- places: lends places of requests in flight of the buckets of one shard to hosts, so that no more than
-- the limit are out over all of them. docs/in-flight.md says why that holds.
--
-- KEYS[1]  the shard's hash:
--            h:<instance>  "seq time_us reply..."  the last call of that daemon, and what it was told
--            f:            "primary since_us called_us heard_us": who serves this hash, since when;
--                          the last call; and since when calls come without a pause
--          a bucket's field: "called_us", then for each host 5 words: instance lent seen_us missing
--            since_us
--            lent          places that it may use or that its requests hold
--            missing       what it was asked for and was not lent yet, since when; 0: nothing
-- ARGV     1 instance    32 hex digits: random ones of the segments that requests hold their places
--                        in, and which daemon of theirs it is; a later one takes over from an earlier
--          2 seq         of the call, rising by one for (instance, shard)
--          3 time_us     0: ask TIME; else the caller's clock, where TIME is refused in scripts
--          4 primary     changes with each failover and each restart of a primary; '': no fence
--          then for each bucket 5: field limit kept want need
--            kept        what the host has of it, after giving back: free or held
--            want        what it would like to have
--            need        of that, what requests asked for in vain
-- Reply    outcome (1: done, or done before and told again; 0: older than the last), now_us, fence_us
--          (how long nothing will be lent), then for each bucket 3: lent, missing (at other hosts), over (so many
--          more than the limit are out: then what is left is not to be used again)
--
-- A call says what is, not what changed: it may be lost, come late, or come twice. What a host keeps
-- is counted whatever the limit says, for its requests are under way.
--
-- Everything is parsed and computed before the ONE HSET, for the reason that fold.lua gives.

local FENCE_US = 5000000         -- after a failover: by then each host has said what it has
local SILENT_US = 30000000       -- then a host's places are others'
local PAUSE_US = 1000000         -- without any call nobody could come, and nobody was silent
local WAITS_US = 1000000         -- so long what a host is missing is kept for it
local SWEEP_EXTRA = 2            -- fields looked at beyond the number of buckets
local KEEP_INSTANCE_US = 600e6   -- h: of a daemon that is gone; far beyond any resend
local KEEP_MS = 604800000        -- of the whole hash: a hash that is missing stands behind a fence

local floor, max, min = math.floor, math.max, math.min
local format, match, gmatch = string.format, string.match, string.gmatch

local key = KEYS[1]
local instance = ARGV[1]
local seq = tonumber(ARGV[2])
local now = tonumber(ARGV[3])
local primary = ARGV[4]
local count = (#ARGV - 4) / 5

local names = {'h:' .. instance, 'f:'}
for i = 1, count do names[i + 2] = ARGV[5 * i] end
local stored = redis.call('HMGET', key, unpack(names))

if stored[1] then
  local words = {}
  for word in gmatch(stored[1], '%S+') do words[#words + 1] = tonumber(word) end
  if seq < words[1] then return {0, words[2], 0} end
  if seq == words[1] then -- a copy of the last call: it is told the same, and nothing is done
    local told = {1, words[2]}
    for i = 3, #words do told[i] = words[i] end
    return told
  end
end

if now == 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- A primary that has not served this hash before may lack the last writes, or all: until every host
-- has said what it has, nothing is lent.
local by, since, called, heard = match(stored[2] or '', '^(%S*) (%d+) (%d+) (%d+)$')
since, called, heard = tonumber(since), tonumber(called), tonumber(heard)
if by ~= primary or since > now then since, called, heard = now, now, now end
if now < called or now - called > PAUSE_US then heard = now end
local fence = primary ~= '' and max(0, since + FENCE_US - now) or 0

-- A former daemon of this host: what it had is this one's, which says what of it is held.
local function is_before(who)
  return who < instance and string.sub(who, 1, 16) == string.sub(instance, 1, 16)
end

local reply = {1, now, fence}
local fields = {names[1], '', 'f:', format('%s %.0f %.0f %.0f', primary, since, now, heard)}
local gone = {}

for i = 1, count do
  local a = 5 * i
  local limit, kept = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local want, need = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local others, out, since_own = {}, 0, now
  for who, lent, seen, missing, asked in
      gmatch(match(stored[i + 2] or '', '^%d+ (.*)$') or '', '(%x+) (%d+) (%d+) (%d+) (%d+)') do
    local o = {who, tonumber(lent), tonumber(seen), tonumber(missing), tonumber(asked)}
    if who == instance then
      if o[4] > 0 then since_own = min(now, o[5]) end
    elseif not is_before(who) and now - max(o[3], heard) <= SILENT_US and o[2] + o[4] > 0 then
      others[#others + 1] = o
      out = out + o[2]
    end
  end
  -- Who waits for longer is served before.
  local missing, ahead = 0, 0
  for _, o in ipairs(others) do
    if o[4] > 0 and now - o[3] <= WAITS_US then
      missing = missing + o[4]
      if need == 0 or o[5] < since_own or (o[5] == since_own and o[1] < instance) then
        ahead = ahead + o[4]
      end
    end
  end
  local free = max(0, limit - out - kept - ahead)
  local lent = 0
  if fence == 0 then
    -- What no request waits for is a part of what is free: others may come.
    lent = max(0, min(want - kept, max(min(need, free), floor(free / 4))))
  end
  local left = max(0, min(need, limit) - lent)
  local words = {format('%.0f', now)}
  for _, o in ipairs(others) do
    words[#words + 1] = format('%s %.0f %.0f %.0f %.0f', o[1], o[2], o[3], o[4], o[5])
  end
  if kept + lent + left > 0 then
    words[#words + 1] = format('%s %.0f %.0f %.0f %.0f', instance, kept + lent, now, left,
      left > 0 and since_own or 0)
  end
  if #words > 1 then
    fields[#fields + 1] = names[i + 2]
    fields[#fields + 1] = table.concat(words, ' ')
  elseif stored[i + 2] then
    gone[#gone + 1] = names[i + 2]
  end
  reply[1 + 3 * i], reply[2 + 3 * i] = kept + lent, missing
  reply[3 + 3 * i] = max(0, out + kept - limit)
end

local words = {format('%.0f', seq)}
for i = 2, #reply do words[i] = format('%.0f', reply[i]) end
fields[2] = table.concat(words, ' ')
redis.call('HSET', key, unpack(fields))

-- Forget daemons that are gone and buckets that nobody has spoken of for so long.
local sample = redis.call('HRANDFIELD', key, count + SWEEP_EXTRA, 'WITHVALUES')
for i = 1, #sample, 2 do
  local name, value = sample[i], sample[i + 1]
  local head = string.sub(name, 1, 2)
  if head == 'h:' then
    local seen = tonumber(match(value, '^%d+ (%d+)') or '0')
    if name ~= names[1] and seen + KEEP_INSTANCE_US < now then gone[#gone + 1] = name end
  elseif head ~= 'f:' then
    local seen = tonumber(match(value, '^%d+') or '0')
    if now - max(seen, heard) > SILENT_US then gone[#gone + 1] = name end
  end
end
if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
redis.call('PEXPIRE', key, KEEP_MS)
return reply
