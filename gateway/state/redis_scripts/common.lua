-- Stands before each script. Times are microseconds of this server. KEYS[1] is the deployment's own hash:
-- e: the generation at which all conversations were last forgotten; n: the last number drawn; d: until when it is
-- not known what was accepted, for subjects of which nothing is kept; srv: the server whose data this is.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function whole(number) return string.format('%.0f', number) end
-- Who asked has given up by then, and may have done something else since.
if now > tonumber(ARGV[1]) then return {now, 'late'} end

local root = KEYS[1]

-- Greater than all before it, also when the counter was lost.
local function draw()
  local last = tonumber(redis.call('HGET', root, 'n') or '0')
  local number = now
  if last >= number then number = last + 1 end
  redis.call('HSET', root, 'n', whole(number))
  return number
end

local function forget_all()
  local number = draw()
  redis.call('HSET', root, 'e', whole(number))
  redis.call('PEXPIRE', root, ROOT_TTL)
  return number
end

local function accepted_lost(to)
  if SETTLE > 0 or to then
    local known = tonumber(redis.call('HGET', root, 'd') or '0')
    redis.call('HSET', root, 'd', whole(math.max(known, to or (now + SETTLE))))
  end
end

local function epoch()
  local number = redis.call('HGET', root, 'e')
  if number then return tonumber(number) end
  accepted_lost()
  return forget_all()
end

local function set_generation(key, number)
  redis.call('HSET', key, 'g', whole(number))
  redis.call('PEXPIRE', key, GENERATION_TTL)
end

-- The current generation, and the oldest one whose readings may be put.
local function generation(key)
  local all = epoch()
  local found = redis.call('HMGET', key, 'g', 's')
  local current = tonumber(found[1])
  if not current then
    current = draw()
    set_generation(key, current)
  end
  local oldest = tonumber(found[2]) or current
  return math.max(current, all), math.max(oldest, all)
end

-- At most so many keys in a table, which its index has in the order in which they were set.
local function bounded(index, key, most, dropped)
  redis.call('ZADD', index, now, key)
  redis.call('PEXPIRE', index, ROOT_TTL)
  local over = redis.call('ZCARD', index) - most
  if over > 0 then
    local popped = redis.call('ZPOPMIN', index, math.min(over, 100))
    for i = 1, #popped, 2 do
      if dropped then dropped(popped[i]) end
      redis.call('DEL', popped[i])
    end
  end
end
