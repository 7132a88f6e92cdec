local books, used, granted, fewest = {}, {}, tonumber(ARGV[asked + 3]), tonumber(ARGV[asked + 4])
local exceeded, longest, off = nil, 0, off_clock(budgets, asked + 6)
if off then return off end
for i = 1, budgets do
  local book = open_book(i, asked + 6, last)
  local needed, left = book.first + book.second * fewest, book.amount - book.total - book.held
  books[i], used[i] = book, book.total + book.held
  if needed > left and needed > 0 then
    local wait = wait_for(book, needed)
    if not exceeded or longest ~= NEVER and (wait == NEVER or wait > longest) then
      exceeded, longest = limits + i, wait
    end
  elseif book.second > 0 then
    local room = left > book.first and left - book.first or 0
    local tokens = (room - room % book.second) / book.second
    if tokens < granted then granted = tokens end
  end
end
-- A limit soon has room again, a budget may not: it is told of first.
if exceeded then
  return {0, exceeded - 1, 0, longest, at, 0, '', 0, unpack(used)}
elseif refusing then
  return {0, refusing - 1, 0, free_at - now, at, 0, '', 0, unpack(used)}
end
