local ends, atoms = text(now + lease_us), {}
for i = 1, budgets do
  local book = books[i]
  atoms[i] = book.first + book.second * granted
  if atoms[i] > 0 then
    used[i] = used[i] + atoms[i]
    call('ZADD', book.holds, ends, request .. ' ' .. text(atoms[i]))
    hold(book, atoms[i])
    keep(book, book.hash)
    keep(book, book.holds)
  end
end
local about = ARGV[asked + 5]
if granted > 0 then
  about = about == '' and text(granted) or sub(about, 1, -2) .. ',"granted":' .. text(granted) .. '}'
end
call('HSET', KEYS[#KEYS - 2], request, about)
call('ZADD', KEYS[#KEYS - 1], ends, name_of(request, {unpack(KEYS, last + 1)}, atoms))
call('PEXPIRE', KEYS[#KEYS - 2], '3024000000')
call('PEXPIRE', KEYS[#KEYS - 1], '3024000000')
do
  return {1, nearest - 1, least, nearest_free_at - now, at, shadowed, plain and '' or lease, granted, unpack(used)}
end
