-- KEYS: the subject's value, the index. ARGV: whether it is known, the value, what it takes to settle, how many,
-- and the time as of its process, which may be ahead: what it reads until then is not taken as settled.
epoch()
local settled = math.max(now, tonumber(ARGV[6])) + tonumber(ARGV[4])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 's', whole(now), 'u', whole(settled))
if ARGV[2] == '1' then redis.call('HSET', KEYS[2], 'v', ARGV[3]) end
redis.call('PEXPIRE', KEYS[2], math.ceil(tonumber(ARGV[4]) / 1000) + ACCEPTED_TTL)
bounded(KEYS[3], KEYS[2], tonumber(ARGV[5]), function(key)
  local ends = redis.call('HGET', key, 'u')
  if ends then accepted_lost(tonumber(ends)) end
end)
return {now}
