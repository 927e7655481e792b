-- fold: adds one batch of use to the buckets of one shard, atomically, and answers their state.
--
-- KEYS[1]  the shard's hash: one field a bucket, and
--            h:<instance>  "seq time_us"  the last batch of that daemon applied here
--            s:            tokens ever counted in this hash (the books' other side)
--          a bucket's field: "tat_us tokens gen d0 d1 n0 n1", of a window with " end_us cur prev",
--            under a penalty with " p denied since_us until_us own_us"
--            tat_us        global theoretical arrival time, may stand in debt; of a window: until
--                          when its count weighs
--            tokens        tokens counted since the field was made
--            gen d0 d1 n0 n1   demand (milli-tokens/s) and hosts of this and the last generation
--            end_us cur prev   of a window: its end (0: none is open), tokens counted in it and in
--                          the one before it (sliding windows)
--            denied since_us until_us own_us   denials since then, the end of the ban (0: none
--                          was), and while it stands what tat_us would be without
--          behind it, where much refill was lost of late, " g lost_us end_us": so much, until then
-- ARGV     1 late_us     how long ago the rest was frozen, when it is sent again; else 0
--          2 known       the last seq that the daemon takes this hash to know; -1: whatever it knows
--          3 instance    random, made at each daemon start
--          4 seq         of the batch, rising by one for (instance, shard)
--          5 time_us     0: ask TIME; else the caller's clock, where TIME is refused in scripts
--          6 gen_us      length of a generation
--          7 rules       R, then R times: tau_us debt_max_us rate (milli-tokens/s); of windows:
--                          length_us, -1 (fixed) or -2 (sliding), rate
--            of windows by the calendar -3, and length_us is the longest
--            under a penalty debt_max_us is "debt_max_us after within_us for_us deny_us unit_us":
--            denials, the time for them, a ban's length, what a denial and a request cost
--          then for each bucket 8: field rule(1..R) cost_us tokens age_us d dprev gen
--            field       or several with a NUL between: its name, and those of before, of which one
--                          that is there is taken over
--            cost_us     use as time, tokens the same as a count; negative: refunds
--            age_us      how old the oldest of it was when frozen, 0 in normal operation
--            d, dprev    the host's demand now, and what it said in its generation `gen` (-1: none)
--          of a window's bucket: cost_us is "cur prev", tokens of the host's open window and of the
--            one before it (what is older only counts as tokens), and age_us how much time the
--            host's window had left when frozen; less than 0: it was over. By the calendar: "cur
--            begin known", and age_us the end, both microseconds of Unix time, the same on all hosts;
--            known: tokens of that window that were told before, where this hash may have lost them
--          under a penalty cost_us is "cost_us denied ban_us": denials, and what is left of a ban that
--            the host has begun by itself when frozen (0: none; less: an operator ends the ban)
--          (of windows by the calendar prev, here and in the reply, is their begin)
-- Reply    outcome (1: applied; 0: seq was known; 2: batches before it are missing here; nothing was
--          written but for 1), seq known before (-1: none), now_us, gen, then for each bucket 3:
--          debt_us, demand of all (milli-tokens/s), hosts; of a window the time left in place of
--          debt_us (0: none is open). After all buckets, for each of a window 2: cur prev; under a
--          penalty 2: ban_us (0: none), 1 where this batch began it
--
-- A batch is refused where an earlier one that the daemon still has is missing: after a failover it
-- sends all of them again in order, under their old numbers. So a seq that is known stands for all
-- before it, and no copy of this hash, of however many that failovers make, counts one twice.
--
-- Everything is parsed and computed before the first write, then ONE HSET holds all fields and the
-- sequence number: a script that fails half-way keeps what it wrote, and state and sequence are to
-- be kept or lost together in a failover. Times are integer microseconds: 2^53 of them are 285
-- years. Numbers reach redis.call as strings made by "%.0f": tostring and .. would lose digits.

local SWEEP_EXTRA = 2            -- fields looked at beyond twice the number of new ones
local KEEP_INSTANCE_US = 86400e6 -- h: of a daemon that is gone; far beyond any resend
local KEEP_MS = 600000           -- of the whole hash after its last batch, at least
local SKEW_US = 60e6             -- by which a host's clock may be ahead of this one
local LOST_US = 1e5              -- a bucket that stood full for longer had no news, or no use
local LOST_PART = 0.97           -- of it may be used later: the shares of hosts that return one by one
                                 -- sum to a little more than one
local LOST_KEEP_US = 15e6        -- by then every host has reported what it used meanwhile

local key = KEYS[1]
local late = tonumber(ARGV[1])
local known = tonumber(ARGV[2])
local instance = 'h:' .. ARGV[3]
local seq = tonumber(ARGV[4])
local now = tonumber(ARGV[5])
local gen_us = tonumber(ARGV[6])
local rules = tonumber(ARGV[7])
local first = 8 + 3 * rules
local count = (#ARGV - first + 1) / 8

if now == 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local gen = math.floor(now / gen_us)

local names, former = {instance, 's:'}, {}
for i = 1, count do
  local field = ARGV[first + 8 * (i - 1)]
  if string.find(field, '\0', 1, true) then
    field, former[i] = string.match(field, '^(%Z*)%z(.*)$')
  end
  names[i + 2] = field
end
local stored = redis.call('HMGET', key, unpack(names))
local gone = {}
for i = 1, next(former) and count or 0 do
  for name in string.gmatch(former[i] or '', '%Z+') do
    local state = redis.call('HMGET', key, name)[1]
    stored[i + 2] = stored[i + 2] or state
    if state then gone[#gone + 1] = name end
  end
end

local last = -1
if stored[1] then
  last = tonumber(string.match(stored[1], '^%d+'))
end
local outcome = seq <= last and 0 or (last < known and 2 or 1)
local apply = outcome == 1

local floor, max, min = math.floor, math.max, math.min
local format, match, find = string.format, string.match, string.find

-- A window: the first host that reports one says when it ends, and all others follow. A sliding one
-- is followed by the next without a gap, as long as what it counted weighs. Returns its end (0: none
-- is open), cur and prev.
local function opened(stop, cur, prev, length, slides)
  -- After a failover TIME may go back: no window lasts beyond a length.
  if stop > now + length then stop = now + length end
  if stop > now then return stop, cur, prev end
  if slides and stop + length > now then return stop + length, 0, cur end
  return 0, 0, 0
end

-- Adds `n` tokens that a host counted in its window that ends at `theirs`, to ours or the one before
-- it, whichever it is nearer to. What is older is over, and forgotten.
local function counted(stop, cur, prev, length, slides, n, theirs)
  if n == 0 then return stop, cur, prev end
  if stop == 0 then
    if theirs > now then return min(theirs, now + length), max(0, n), 0 end
    if slides and theirs + length > now then return theirs + length, 0, max(0, n) end
  elseif theirs > stop - length / 2 then
    cur = max(0, cur + n)
  elseif slides and theirs > stop - 1.5 * length then
    prev = max(0, prev + n)
  end
  return stop, cur, prev
end

-- The same by the calendar: of two windows the later stands, unless it lies ahead of this clock, that
-- is by a clock that goes wrong. Such a host's use is of now all the same.
local function dated(stop, cur, begin, n, theirs, starts, known)
  if (n == 0 and known == 0) or theirs <= now then return stop, cur, begin end
  if starts > now + SKEW_US then
    if stop ~= 0 then cur = max(0, cur + n) end
  elseif stop == theirs and begin == starts then
    cur = max(0, max(cur, known) + n)
  elseif starts > begin then
    return theirs, max(0, known + n), starts
  end
  return stop, cur, begin
end
local reply = {outcome, last, now, gen}
local fields = {instance, format('%.0f %.0f', seq, now)}
local at = #fields
local sum = tonumber(stored[2] or '0')
local created = 0
local longest = 0
local more = 4 + 3 * count -- where the reply of windows and penalties goes on

for i = 1, count do
  local a = first + 8 * (i - 1)
  local r = 8 + 3 * (tonumber(ARGV[a + 1]) - 1)
  local tau, debt_max = tonumber(ARGV[r]), tonumber(ARGV[r + 1])
  local after, within, bans, deny, unit
  if not debt_max then
    debt_max, after, within, bans, deny, unit =
      match(ARGV[r + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    debt_max, after, within = tonumber(debt_max), tonumber(after), tonumber(within)
    bans, deny, unit = tonumber(bans), tonumber(deny), tonumber(unit)
  end
  local is_window, slides, is_dated = debt_max < 0, debt_max == -2, debt_max == -3
  local tat, tokens, g, d0, d1, n0, n1, stop, cur, prev
  local denied, since, stays, began = 0, 0, 0, 0 -- stays: until when it is banned
  local own = 0                                  -- tat without the ban
  local lost, lost_end = 0, 0
  if stored[i + 2] then
    local rest
    tat, tokens, g, d0, d1, n0, n1, rest =
      match(stored[i + 2], '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)(.*)$')
    tat, tokens, g = tonumber(tat), tonumber(tokens), tonumber(g)
    d0, d1, n0, n1 = tonumber(d0), tonumber(d1), tonumber(n0), tonumber(n1)
    if rest and find(rest, ' g ', 1, true) then
      rest, lost, lost_end = match(rest, '^(.*) g (%S+) (%S+)$')
      lost, lost_end = tonumber(lost), tonumber(lost_end)
    end
    if rest and string.sub(rest, 1, 3) == ' p ' then
      denied, since, stays, own = match(rest, '^ p (%S+) (%S+) (%S+) (%S+)$')
      denied, since, stays = tonumber(denied), tonumber(since), tonumber(stays)
      if stays > now then tat = tonumber(own) end
    elseif rest and rest ~= '' then
      stop, cur, prev = match(rest, '^ (%S+) (%S+) (%S+)$')
      stop, cur, prev = tonumber(stop), tonumber(cur), tonumber(prev)
    end
    -- A rule that has changed from one kind to another begins anew.
    if is_window ~= (prev ~= nil) then tat, stop, cur, prev = 0, 0, 0, 0 end
  end
  if not n1 then -- new, or written by nobody we know
    tat, tokens, g, d0, d1, n0, n1 = 0, 0, gen, 0, 0, 0, 0
    stop, cur, prev = 0, 0, 0
    created = created + 1
  end
  if g ~= gen then -- a new generation: what hosts said two generations ago is forgotten
    if g == gen - 1 then
      d1, n1 = d0, n0
    else
      d1, n1 = 0, 0
    end
    d0, n0 = 0, 0
  end
  if is_dated then
    if stop <= now or prev > now + SKEW_US then stop, cur, prev = 0, 0, 0 end
  elseif is_window then
    stop, cur, prev = opened(stop, cur, prev, tau, slides)
  end
  if apply then
    local used = tonumber(ARGV[a + 3])
    local cost, fresh, ban = ARGV[a + 2], 0, 0
    if after then
      cost, fresh, ban = match(cost, '^(%S+) (%S+) (%S+)$')
      fresh, ban = tonumber(fresh), tonumber(ban)
    end
    cost = is_window and 0 or tonumber(cost)
    if is_window then
      local open, before, known = match(ARGV[a + 2], '^(%S+) (%S+) ?(%S*)$')
      open, before, known = tonumber(open), tonumber(before), tonumber(known) or 0
      if is_dated then
        stop, cur, prev = dated(stop, cur, prev, open, tonumber(ARGV[a + 4]), before,
          known)
      else
        local theirs = now - late + tonumber(ARGV[a + 4])
        stop, cur, prev = counted(stop, cur, prev, tau, slides, before, theirs - tau)
        stop, cur, prev = counted(stop, cur, prev, tau, slides, open, theirs)
      end
    elseif cost >= 0 then
      -- Old use is added where it happened, so that an outage's use is counted and not replayed:
      -- also where others were heard before, whose use since has moved tat on.
      local at, from = now - late, now - late - tonumber(ARGV[a + 4])
      if lost > 0 and from < lost_end and lost_end <= now then
        local paid = min(lost, LOST_PART * cost * min(1, (lost_end - from) / max(1, at - from)))
        cost, lost = cost - paid, lost - paid
      end
      if tat > 0 and from > tat + LOST_US then lost, lost_end = from - tat, from end
      tat = max(tat, from) + cost
    else
      tat = max(tat + cost, min(tat, now))
    end
    local at_us = now - late
    if ban < 0 then
      tat, denied, stays = 0, 0, 0
    elseif ban > 0 then
      stays = max(stays, at_us + ban)
    end
    -- Denials of a bucket that is banned are the ban's, and lengthen nothing.
    if fresh > 0 and stays <= now then
      if deny > 0 then tat = max(tat, now) + fresh * deny end
      if denied == 0 or at_us > since + within then denied, since = 0, at_us end
      denied = denied + fresh
      if after > 0 and denied >= after then denied, stays, began = 0, at_us + bans, 1 end
    end
    tokens = tokens + used
    sum = sum + used
    local said = tonumber(ARGV[a + 7])
    if said == gen then
      d0, n0 = max(0, d0 - tonumber(ARGV[a + 6])), max(0, n0 - 1)
    elseif said == gen - 1 then
      d1, n1 = max(0, d1 - tonumber(ARGV[a + 6])), max(0, n1 - 1)
    end
    d0, n0 = d0 + tonumber(ARGV[a + 5]), n0 + 1
  end
  if is_window then
    tat = stop == 0 and 0 or (slides and stop + tau or stop)
  else
    -- After a failover TIME may go back: a TAT is never believed beyond the bound, nor a ban.
    tat = min(tat, now + tau + debt_max)
    own = tat
    if after then
      stays = min(stays, now + bans)
      -- A ban is debt: at its end one request's cost has come back, whatever was used or given back,
      -- or what the limit denies for longer.
      if stays > now then tat = max(tat, stays + tau - unit) end
    end
  end
  local debt = max(0, tat - now)
  longest = max(longest, debt)
  if apply then
    fields[at + 1] = names[i + 2]
    fields[at + 2] = format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', tat, tokens, gen, d0, d1, n0, n1)
    if is_window then
      fields[at + 2] = fields[at + 2] .. format(' %.0f %.0f %.0f', stop, cur, prev)
    elseif after then
      fields[at + 2] = fields[at + 2] .. format(' p %.0f %.0f %.0f %.0f', denied, since, stays, own)
    end
    if lost > 0 and lost_end + LOST_KEEP_US > now then
      fields[at + 2] = fields[at + 2] .. format(' g %.0f %.0f', lost, lost_end)
    end
    at = at + 2
  end
  local b = 4 + 3 * (i - 1)
  reply[b + 1] = floor(debt)
  reply[b + 2] = floor(d0 + d1)
  reply[b + 3] = max(1, n0 + n1)
  if is_window then
    reply[b + 1] = max(0, stop - now)
    more = more + 2
    reply[more - 1], reply[more] = cur, prev
  elseif after then
    more = more + 2
    reply[more - 1], reply[more] = max(0, floor(stays - now)), began
  end
end

if apply then
  fields[at + 1] = 's:'
  fields[at + 2] = format('%.0f', sum)
  redis.call('HSET', key, unpack(fields))
  -- Forget buckets that are full again and daemons that are gone, at twice the pace at which
  -- fields come: a fixed small sample would leak.
  local sample = redis.call('HRANDFIELD', key, 2 * created + SWEEP_EXTRA, 'WITHVALUES')
  for i = 1, #sample, 2 do
    local name, value = sample[i], sample[i + 1]
    local head = string.sub(name, 1, 2)
    if head == 'h:' then
      local seen = tonumber(match(value, ' (%d+)$') or '0')
      if seen + KEEP_INSTANCE_US < now then gone[#gone + 1] = name end
    elseif head ~= 's:' then
      local tat, g = match(value, '^(%S+) %S+ (%S+)')
      if not g or (tonumber(tat) <= now and tonumber(g) < gen - 1) then gone[#gone + 1] = name end
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  -- NX starts the expiry, GT lengthens it; plain PEXPIRE would shorten what a longer debt needs.
  local keep = format('%.0f', KEEP_MS + longest / 1000)
  redis.call('PEXPIRE', key, keep, 'NX')
  redis.call('PEXPIRE', key, keep, 'GT')
end
return reply
