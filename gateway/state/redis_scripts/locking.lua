-- KEYS[2] is one conversation's lock, a hash. x: the token that holds it exclusively; s:TOKEN: one that shares it;
-- w: who waits, {{caller, {{token, exclusive}, ...}}, ...} in the order of their turns. A token is CHANNEL.N/NUMBER:
-- CHANNEL.N is a process whose locks are good while its lease is there, CHANNEL where it hears of what is granted.
local lock = KEYS[2]
local leases = {}

local function lease_of(token) return root .. ':lease:' .. string.match(token, '^[^/]+') end

local function alive(token)
  local lease = lease_of(token)
  if leases[lease] == nil then leases[lease] = redis.call('EXISTS', lease) == 1 end
  return leases[lease]
end

-- Who holds and who waits, without those whose process is gone.
local function standing()
  local fields = redis.call('HGETALL', lock)
  local shared, exclusive, waiting = 0, false, {}
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'w' then
      for _, one in ipairs(cmsgpack.unpack(value)) do
        local queue = {}
        for _, waiter in ipairs(one[2]) do
          if alive(waiter[1]) then queue[#queue + 1] = waiter end
        end
        if #queue > 0 then waiting[#waiting + 1] = {one[1], queue} end
      end
    elseif name == 'x' then
      if alive(value) then exclusive = value else redis.call('HDEL', lock, name) end
    elseif alive(string.sub(name, 3)) then
      shared = shared + 1
    else
      redis.call('HDEL', lock, name)
    end
  end
  return shared, exclusive, waiting
end

local function keep(waiting)
  if #waiting == 0 then
    redis.call('HDEL', lock, 'w')
  else
    redis.call('HSET', lock, 'w', cmsgpack.pack(waiting))
  end
  redis.call('PEXPIRE', lock, LOCK_TTL)
end

local function take(token, exclusive)
  if exclusive then
    redis.call('HSET', lock, 'x', token)
  else
    redis.call('HSET', lock, 's:' .. token, '1')
  end
end

-- To the callers that wait, one turn after the other, as long as those who hold it allow it. A turn is an exclusive
-- lock, or all the shared ones up to the next that is not. `gone`: a token that waits no more.
local function grant(gone)
  local shared, exclusive, waiting = standing()
  if gone then
    for i, one in ipairs(waiting) do
      for j, waiter in ipairs(one[2]) do
        if waiter[1] == gone then
          table.remove(one[2], j)
          break
        end
      end
      if #one[2] == 0 then
        table.remove(waiting, i)
        break
      end
    end
  end
  while #waiting > 0 and not exclusive do
    local first = waiting[1]
    local queue = first[2]
    local kind = queue[1][2]
    if kind == 1 and shared > 0 then break end
    while #queue > 0 and queue[1][2] == kind and not exclusive do
      local token = table.remove(queue, 1)[1]
      take(token, kind == 1)
      if kind == 1 then exclusive = token else shared = shared + 1 end
      redis.call('PUBLISH', root .. ':to:' .. string.match(token, '^[^.]+'), token)
    end
    table.remove(waiting, 1)
    if #queue > 0 then waiting[#waiting + 1] = first end
  end
  keep(waiting)
  return shared, exclusive, waiting
end
