-- The rule of gateway/budgets/book.py, inside Redis; a part of every script that knows budgets.
--
-- KEYS  three for each budget: a hash of its sums, atoms by segment and `held`; a sorted set of "REQUEST ATOMS" by the
--       end of the reservation's lease; a hash of what ended unsettled, REQUEST to "ATOMS SEGMENT"
-- ARGV  eight for each budget: its amount; its segment in microseconds, 0 for a calendar's; four starts of a calendar's
--       windows in seconds; and two numbers of the script's
--
-- Numbers are doubles: exact, for no budget is as much as 2^53.

local STRIDE, SPANS, SLACK_MS, UNKNOWN_MS = 8, 60, 60000, 2764800000
local WAIT_US, NEVER, ENDED_AT_ONCE = 1000000, -1, 100

local function text(number)
  return format('%d', number)
end

local function segment_at(book, at_us)
  if book.unit > 0 then return (at_us - at_us % book.unit) / book.unit end
  local at_s, found = (at_us - at_us % 1000000) / 1000000, book.starts[1]
  for i = 2, 4 do
    if book.starts[i] <= at_s then found = book.starts[i] end
  end
  return found
end

-- The error to answer with, before anything is changed, where whoever asks does not know the calendar's window that this
-- is by Redis's clock: one clock that is days ahead would end it for all others, and begin one that they are not in yet.
local function off_clock(budgets, numbers_at)
  for i = 1, budgets do
    local at, at_s = numbers_at + STRIDE * (i - 1), now / 1000000
    if ARGV[at + 1] == '0' and (at_s < tonumber(ARGV[at + 2]) or at_s >= tonumber(ARGV[at + 5])) then
      return redis.error_reply('CLOCK it is in none of the windows that were told')
    end
  end
end

-- When a segment leaves the window; nil, if that is behind the starts that are known.
local function leaves_at(book, segment)
  if book.unit > 0 then return (segment + SPANS + 1) * book.unit end
  for i = 1, 4 do
    if book.starts[i] > segment then return book.starts[i] * 1000000 end
  end
end

-- The segment that is spent in now: the newest one still, should the clock have stepped back.
local function find_newest(book)
  local newest = book.current
  for segment, atoms in pairs(book.spent) do
    if atoms ~= 0 and segment > newest then newest = segment end
  end
  book.newest = newest
  book.oldest = book.unit > 0 and newest - SPANS or newest
end

-- Until whatever may still be counted in it has left the window: a lease that ends is counted when it ends.
local function keep(book, key)
  if not book.keeps then
    local ends = segment_at(book, now + lease_us)
    local leaves = leaves_at(book, ends > book.newest and ends or book.newest)
    book.keeps = text(leaves and (leaves - now) / 1000 + SLACK_MS or UNKNOWN_MS)
  end
  call('PEXPIRE', key, book.keeps)
end

local function add(book, segment, atoms)
  book.spent[segment] = (book.spent[segment] or 0) + atoms
  call('HINCRBY', book.hash, text(segment), text(atoms))
  if atoms < 0 or segment > book.newest then find_newest(book) end
end

local function hold(book, atoms)
  book.held = book.held + atoms
  call('HINCRBY', book.hash, 'held', text(atoms))
end

-- What ended is assumed: counted as spent when its lease ended. Of very many, the rest stays held until the next call.
local function assume(book)
  local ended = call('ZRANGEBYSCORE', book.holds, '-inf', text(now), 'WITHSCORES', 'LIMIT', '0', text(ENDED_AT_ONCE))
  if #ended == 0 then return end
  for i = 1, #ended, 2 do
    local request, atoms = string.match(ended[i], '^(%S+) (%d+)$')
    local segment = segment_at(book, tonumber(ended[i + 1]))
    add(book, segment, tonumber(atoms))
    hold(book, -tonumber(atoms))
    call('ZREM', book.holds, ended[i])
    call('HSET', book.assumed, request, atoms .. ' ' .. text(segment))
  end
  local all = call('HGETALL', book.assumed)
  for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], '%S+$')) < book.oldest then call('HDEL', book.assumed, all[i]) end
  end
  keep(book, book.hash)
  keep(book, book.assumed)
end

-- Add up anew what is held, where one of its two keys is gone, deleted by hand or evicted: the other would be wrong for ever.
local function recount(book)
  local sum = 0
  for _, member in ipairs(call('ZRANGE', book.holds, '0', '-1')) do sum = sum + string.match(member, '%d+$') end
  if sum ~= book.held then
    hold(book, sum - book.held)
    keep(book, book.hash)
  end
end

-- Read a budget as it is now.
local function open_book(i, numbers_at, keys_at)
  local at, key = numbers_at + STRIDE * (i - 1), keys_at + 3 * i - 2
  local book = {
    hash = KEYS[key], holds = KEYS[key + 1], assumed = KEYS[key + 2], amount = tonumber(ARGV[at]),
    unit = tonumber(ARGV[at + 1]), held = 0, total = 0, spent = {}, first = tonumber(ARGV[at + 6]),
    second = tonumber(ARGV[at + 7]),
  }
  if book.unit == 0 then
    book.starts = {
      tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]),
    }
  end
  book.current = segment_at(book, now)
  local fields = call('HGETALL', book.hash)
  for n = 1, #fields, 2 do
    if fields[n] == 'held' then
      book.held = tonumber(fields[n + 1])
    else
      book.spent[tonumber(fields[n])] = tonumber(fields[n + 1])
    end
  end
  find_newest(book)
  if #fields == 0 or book.held < 0 or book.held > 0 and call('EXISTS', book.holds) == 0 then recount(book) end
  if book.held > 0 then assume(book) end
  for segment, atoms in pairs(book.spent) do
    if segment < book.oldest or atoms == 0 then
      book.spent[segment] = nil
      call('HDEL', book.hash, text(segment))
    else
      book.total = book.total + atoms
    end
  end
  return book
end

-- The microseconds until a request that needs so many atoms could pass, which it cannot now.
local function wait_for(book, needed)
  if needed > book.amount then return NEVER end
  local surplus, segments = book.total + needed - book.amount, {}
  if surplus <= 0 then return WAIT_US end
  for segment in pairs(book.spent) do segments[#segments + 1] = segment end
  table.sort(segments)
  for _, segment in ipairs(segments) do
    surplus = surplus - book.spent[segment]
    if surplus <= 0 then return math.max((leaves_at(book, segment) or now) - now, WAIT_US) end
  end
  return WAIT_US
end

-- Take back what was counted for a request that ended; whether it was, and still counts.
local function unassume(book, request)
  local was = call('HGET', book.assumed, request)
  if not was then return false end
  call('HDEL', book.assumed, request)
  local atoms, segment = string.match(was, '^(%d+) (%d+)$')
  atoms, segment = tonumber(atoms), tonumber(segment)
  if segment < book.oldest or not book.spent[segment] then return false end
  add(book, segment, -atoms)
  return true
end

-- How a reservation is named where all of a family are: by its request, and where how much of it is held.
local function name_of(request, keys, atoms)
  local words = {request}
  for i = 1, #atoms do
    if atoms[i] > 0 then words[#words + 1] = keys[3 * i - 2] .. ' ' .. text(atoms[i]) end
  end
  return table.concat(words, ' ')
end
