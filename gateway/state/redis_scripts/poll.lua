-- Whether the token holds the lock by now; it may have been granted unheard, or its holder be gone.
local token = ARGV[2]
local found = redis.call('HMGET', lock, 'x', 's:' .. token)
if found[1] == token or found[2] then return {now, 'held'} end
-- While another holds it there is nothing to grant, however many wait.
if found[1] and alive(found[1]) then return {now, 'waits'} end
local _, exclusive, waiting = grant()
if exclusive == token or redis.call('HEXISTS', lock, 's:' .. token) == 1 then return {now, 'held'} end
for _, one in ipairs(waiting) do
  for _, waiter in ipairs(one[2]) do
    if waiter[1] == token then return {now, 'waits'} end
  end
end
return {now, 'gone'}
