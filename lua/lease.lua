-- lease: lends tokens of the buckets of one shard to hosts, so that no window ever admits more than
-- limit * window + burst over all hosts. docs/accuracy.md has the proof. Where a rule lets hosts spend
-- more than they were lent, they say so with their next call, and the level pays.
--
-- KEYS[1]  the shard's hash: one field a bucket, and
--            h:<instance>  "seq time_us reply..."  the last call of that daemon, and what it was told
--            f:            "primary fence_us"      who served this hash, and since when
--            e:<label>     which map of homes is in force here; see home.lua
--          a bucket's field: "level t_us fence_us gen o0 o1 d0 d1 n0 n1 unit lost lost_us cut full_us"
--            level         what nobody holds; `unit` of it are one token, `limit` come each us
--            fence_us      the fence that it has passed; a lease of before it is not believed
--            gen o0 o1     tokens out in this and the last generation; they end with the next but one
--            d0 d1 n0 n1   demand (milli-tokens/s) and hosts of both
--            lost lost_us  refill that found it full while nobody came for long, and when that ended;
--                          from then on, what is set aside for hosts that go on alone
--            cut           their part of the limit (ppm); below 0: none has said yet that it was alone, and
--                          so much (ppm, and 1) is back already
--            full_us       when it is full again if nobody comes: then it may be forgotten
-- ARGV     1 instance    128 random bits, made at each daemon start
--          2 seq         of the call, rising by one for (instance, shard)
--          3 time_us     0: ask TIME; else the caller's clock, where TIME is refused in scripts
--          4 primary     changes with each failover and each restart of a primary; '': no fence
--          5 sync_us     how often hosts come in normal operation
--          6 rules       R, then R times: limit unit burst spare_us home (a period of `unit` us, in
--                        lowest terms)
--            spare_us    0: strict. Else what refill may bring beyond the burst, as time; the level
--                        may fall below 0, and what a failover loses is not waited for
--            home        "label epoch map" of a strict rule, '' where there are no regions
--          then for each bucket 16: field rule(1..R) fence_us gen held rem ret dprev d target waiting
--                        need over alone alone_us part
--            fence_us, gen of the lease that the host holds (-1: none); held: what is counted for it
--            here; rem: what it keeps; ret: what it gives back; the rest of `held` is spent
--            dprev, d    its demand as said then, and now
--            target      what it would like to hold; waiting: tokens of callers that wait
--            need        the largest cost that it could not serve, at least 1
--            over        spent beyond the lease since the last call; 0 under a strict rule
--            alone       spent by its share since alone_us ago, when replies were overdue. If Redis
--                        was away for all, `lost` pays: nobody else was served meanwhile
--            part        of the limit (ppm) by which it did, or would have: it was not told
--                        anything for long; 0: it was
-- Reply    outcome (1: done, or done before and told again; 0: older than the last), now_us, then for
--          each bucket 11: live (or 2 x why its home is not here now: 1 not open yet, 2 a later map
--          is in force, 3 another map of that epoch), granted, fence_us, gen, short, retry_us, share (ppm), demand of all,
--          hosts, level (tokens), out
--
-- An instance is random, not a host and an epoch: a late call of a daemon that is gone has a field
-- of its own, so it can neither pass for a call of the new one nor hide one. What it is granted
-- nobody will spend, what it returns its daemon had given up before sending; both are counted.
-- A call done twice (its h: is gone) finds its lease expired and is credited nothing.
--
-- Everything is parsed and computed before the ONE HSET, for the reason that fold.lua gives.

local GEN_US = 1000000           -- a lease ends before the end of the next generation
local AWAY_US = 50000            -- the homes are being settled
local LONG_SYNCS = 2             -- without any call: nobody could come
local LATE_US = 2500000          -- by then hosts are back after an outage
local SWEEP_EXTRA = 2            -- fields looked at beyond twice the number of new ones
local KEEP_INSTANCE_US = 600e6   -- h: of a daemon that is gone; far beyond any resend
local KEEP_MS = 604800000        -- of the whole hash: a hash that is missing stands behind a fence

local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local format, match, gmatch = string.format, string.match, string.gmatch

local key = KEYS[1]
local instance = 'h:' .. ARGV[1]
local seq = tonumber(ARGV[2])
local now = tonumber(ARGV[3])
local primary = ARGV[4]
local sync = tonumber(ARGV[5])
local rules = tonumber(ARGV[6])
local first = 7 + 5 * rules
local count = (#ARGV - first + 1) / 16

local names, former = {instance, 'f:'}, {}
for i = 1, count do
  local field = ARGV[first + 16 * (i - 1)]
  if string.find(field, '\0', 1, true) then field, former[i] = match(field, '^(%Z*)%z(.*)$') end
  names[i + 2] = field
end
local mark_at = {} -- by rule
for r = 1, rules do
  local label = match(ARGV[6 + 5 * r], '^%S+')
  if label then
    names[#names + 1] = 'e:' .. label
    mark_at[r] = #names
  end
end
local stored = redis.call('HMGET', key, unpack(names))

if stored[1] then
  local words = {}
  for word in gmatch(stored[1], '%S+') do words[#words + 1] = tonumber(word) end
  if seq < words[1] then return {0, words[2]} end
  if seq == words[1] then -- a copy of the last call: it is told the same, and nothing is done
    local told = {1, words[2]}
    for i = 3, #words do told[i] = words[i] end
    return told
  end
end

local gone = {}
for i = 1, next(former) and count or 0 do -- as in fold.lua
  for name in gmatch(former[i] or '', '%Z+') do
    local state = redis.call('HMGET', key, name)[1]
    stored[i + 2] = stored[i + 2] or state
    if state then gone[#gone + 1] = name end
  end
end

if now == 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- A primary that has not served this hash before may lack the last writes: every bucket is empty, and
-- refill begins when the last lease of before has ended, a generation later.
local fence = 0
if primary ~= '' then
  local by, since = match(stored[2] or '', '^(%S+) (%d+)$')
  fence = by == primary and tonumber(since) or now
end

-- Why buckets of the rule are not at home here now, 0: they are; and since when they are, or were.
local function home(r)
  if not mark_at[r] then return 0, 0 end
  local epoch, map = match(ARGV[6 + 5 * r], ' (%d+) (%S+)$')
  local e, m, _, opened = match(stored[mark_at[r]] or '', '^(%d+) (%S+) (%d+) (%d+)$')
  epoch, e, opened = tonumber(epoch), tonumber(e or -1), tonumber(opened or 0)
  if e > epoch then return 2, opened end
  if e == epoch and m ~= map then return 3, opened end
  -- What was opened under another primary may have been closed there since.
  return e == epoch and opened > 0 and opened >= fence and 0 or 1, opened
end

local reply = {1, now}
local fields = {instance, '', 'f:', format('%s %.0f', primary, fence)}
local created = 0
local longest = 0

for i = 1, count do
  local a = first + 16 * (i - 1)
  local r = 2 + 5 * tonumber(ARGV[a + 1])
  local away, since = home(tonumber(ARGV[a + 1]))
  since = max(since, fence)
  local limit, unit, burst = tonumber(ARGV[r]), tonumber(ARGV[r + 1]), tonumber(ARGV[r + 2])
  local spare = limit * tonumber(ARGV[r + 3])
  local strict = spare == 0
  local level, t, passed, gen, o0, o1, d0, d1, n0, n1, was, lost, lost_us, cut
  if stored[i + 2] then
    level, t, passed, gen, o0, o1, d0, d1, n0, n1, was, lost, lost_us, cut = match(stored[i + 2],
      '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) %S+$')
    level, t, passed, gen = tonumber(level), tonumber(t), tonumber(passed), tonumber(gen)
    o0, o1, d0, d1 = tonumber(o0), tonumber(o1), tonumber(d0), tonumber(d1)
    n0, n1, was = tonumber(n0), tonumber(n1), tonumber(was)
    lost, lost_us, cut = tonumber(lost), tonumber(lost_us), tonumber(cut)
  end
  if not was then
    created = created + 1
  elseif was ~= unit then -- the rule's period has changed
    level = floor(level / was) * unit
  end
  if not was or (strict and passed ~= since) then
    -- One that was forgotten was full since the fence, so counting from there fills it again.
    if strict and since > 0 then
      level, t = -limit * GEN_US, since
    else
      level, t = burst * unit, now
    end
    passed, gen, o0, o1, d0, d1, n0, n1 = since, floor(t / GEN_US), 0, 0, 0, 0, 0, 0
    lost, lost_us, cut = 0, 0, 0
  end
  level = min(level, burst * unit + spare)

  -- Refill never reaches what is out, and is counted up to each end of a generation: what went out
  -- before it must not have been refilled while it could be spent.
  local at = max(now, t) -- TIME may go back
  local before, came = level, t
  -- After an outage hosts come back one by one. What the others spend meanwhile is set aside.
  if at - lost_us > LATE_US then cut = min(cut, 0) end
  local pace = limit - limit * max(0, cut) / 1e6
  for _ = 1, 2 do
    local ending = (gen + 1) * GEN_US
    if ending <= at then
      level = max(level, min(level + pace * (ending - t), (burst - o0 - o1) * unit + spare))
      t, gen = ending, gen + 1
      o0, o1, d0, d1, n0, n1 = 0, o0, 0, d0, 0, n0
    end
  end
  if gen < floor(at / GEN_US) then
    gen, o1, d1, n1 = floor(at / GEN_US), 0, 0, 0
  end
  level = max(level, min(level + pace * (at - t), (burst - o0 - o1) * unit + spare))
  t = at
  local unused = limit * (at - came) - (level - before)
  if cut > 0 then -- what stands aside, pauses of the few that are back among it
    lost = lost + unused
  elseif at - came >= LONG_SYNCS * sync then
    -- Copies that were on their way when it began run first, long before their hosts are heard.
    if came - lost_us > LATE_US then lost, cut = 0, -1 end
    lost, lost_us, cut = lost + unused, at, min(cut, -1)
  end

  -- What the host held
  local given, held, rem = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
  local ret, dprev, d = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8])
  local live = tonumber(ARGV[a + 2]) == passed and (given == gen or given == gen - 1)
    and rem >= 0 and ret >= 0 and rem + ret <= held and away == 0
  if live then
    if given == gen then
      o0, d0, n0 = o0 - held, max(0, d0 - dprev), max(0, n0 - 1)
    else
      o1, d1, n1 = o1 - held, max(0, d1 - dprev), max(0, n1 - 1)
    end
    -- A failover that no fence stands behind may have lost the grant.
    if not strict then o0, o1 = max(0, o0), max(0, o1) end
    level = level + ret * unit
  else
    rem = 0 -- expired: the refill has it already, so nothing is credited
  end
  if not strict then
    local over, alone = max(0, tonumber(ARGV[a + 12])), max(0, tonumber(ARGV[a + 13]))
    local part, paid = tonumber(ARGV[a + 15]), 0
    if part > 0 and lost_us >= at - tonumber(ARGV[a + 14]) then
      if cut < 0 and alone == 0 then -- back, and nobody has said yet that it was alone
        cut = cut - part
      else
        cut = max(0, (cut < 0 and 1e6 + 1 + cut or cut) - part)
        paid = min(lost, alone * unit)
      end
    end
    lost = lost - paid
    level = max(level - (over + alone) * unit + paid,
      min(level, -max(burst * unit, limit * GEN_US)))
  end

  -- What it is given
  local target, waiting = tonumber(ARGV[a + 9]), tonumber(ARGV[a + 10])
  local need = min(max(1, tonumber(ARGV[a + 11])), burst)
  local rate = limit * 1e6 / unit          -- tokens/s
  local kappa = rate * 250                 -- milli-tokens/s: a quarter of the limit
  local D, n = d0 + d1 + d, n0 + n1 + 1
  local s = min(1, (d + kappa / n) / (D + kappa))
  local tick = rate * sync / 1e6           -- tokens that come in one sync interval
  local av = max(0, floor(level / unit))
  local cap = max(need, waiting, floor(0.6 * burst * s), floor(av / 32))
  local fair = max(need, ceil(s * (av + tick)), floor(av / 32))
  local want = max(0, min(target + waiting, cap) - rem)
  local g = min(want, av, fair)
  -- Less than the cost that is asked for would lie at the host, and at other hosts the rest of it.
  if need > 1 and rem < need and rem + g < need then g = 0 end
  if away > 0 then g = 0 end
  level = level - g * unit
  o0, d0, n0 = o0 + rem + g, d0 + d, n0 + 1

  -- When it should come again
  local out = o0 + o1
  local tokens = level / unit
  local full = (out + tokens) / burst
  local short = g < want
  local missing = rem + g < need and need - rem - g or 1
  local first_token = max(0, missing * unit - level) / limit
  local retry
  if full > 0.9 then -- refill is being lost
    retry = max(first_token, 9 * sync * max(0, 1 - full))
  elseif waiting > 0 and s * tick < 1 then
    retry = max(first_token, 0.5e6 / (s * rate))
  else
    retry = max(first_token, min(0.9 * sync * min(1, max(0.25, n / 20)),
      max(0, 0.5e6 * (burst - out - tokens) / rate / s)))
  end
  if D > 1100 * rate and full < 0.7 and tokens < 0.3 * tick and g > 0 and s < 0.25 then
    local paced = min(0.9 * sync, g * 1e6 / (s * rate)) -- fewer calls, and fair ones
    retry = short and max(retry, paced) or paced
    short = true
  end

  if away > 0 then short, retry = true, away == 1 and AWAY_US or GEN_US end

  local full_us = max(t, out > 0 and (gen + 2) * GEN_US or 0) + ceil((burst * unit - level) / limit)
  if not strict and cut ~= 0 then full_us = max(full_us, lost_us + LATE_US) end -- `lost` is to pay
  longest = max(longest, full_us - now)
  fields[3 + 2 * i] = names[i + 2]
  fields[4 + 2 * i] = format(
    '%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f',
    level, t, passed, gen, o0, o1, d0, d1, n0, n1, unit, lost, lost_us, cut, full_us)
  local b = 2 + 11 * (i - 1)
  reply[b + 1] = live and 1 or 2 * away
  reply[b + 2], reply[b + 3], reply[b + 4] = g, passed, gen
  reply[b + 5], reply[b + 6], reply[b + 7] = short and 1 or 0, ceil(retry), ceil(s * 1e6)
  reply[b + 8], reply[b + 9], reply[b + 10], reply[b + 11] = floor(D), n, max(0, floor(tokens)), out
end

local words = {format('%.0f', seq)}
for i = 2, #reply do words[i] = format('%.0f', reply[i]) end
fields[2] = table.concat(words, ' ')
redis.call('HSET', key, unpack(fields))

-- Forget buckets that are full again and daemons that are gone, at twice the pace at which fields
-- come.
local sample = redis.call('HRANDFIELD', key, 2 * created + SWEEP_EXTRA, 'WITHVALUES')
for i = 1, #sample, 2 do
  local name, value = sample[i], sample[i + 1]
  local head = string.sub(name, 1, 2)
  if head == 'h:' then
    local seen = tonumber(match(value, '^%d+ (%d+)') or '0')
    if name ~= instance and seen + KEEP_INSTANCE_US < now then gone[#gone + 1] = name end
  elseif head ~= 'f:' and head ~= 'e:' then
    local full_us = tonumber(match(value, ' (%d+)$') or '0')
    if full_us <= now then gone[#gone + 1] = name end
  end
end
if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
local keep = format('%.0f', KEEP_MS + longest / 1000)
redis.call('PEXPIRE', key, keep, 'NX')
redis.call('PEXPIRE', key, keep, 'GT')
return reply
