-- KEYS: the conversation, the reading, the index. ARGV: generation, started, nonce, body, how many at most.
local all = epoch()
local found = redis.call('HMGET', KEYS[2], 'g', 's')
local oldest = tonumber(found[2]) or tonumber(found[1])
if not oldest or tonumber(ARGV[2]) < math.max(oldest, all) then return {now, 0} end
local kept = redis.call('HMGET', KEYS[3], 'g', 't')
if kept[1] and tonumber(kept[1]) >= tonumber(ARGV[2]) and tonumber(kept[2]) > tonumber(ARGV[3]) then
  return {now, 0}
end
redis.call('HSET', KEYS[3], 'g', ARGV[2], 't', ARGV[3], 'n', ARGV[4], 'b', ARGV[5])
redis.call('PEXPIRE', KEYS[3], READING_TTL)
bounded(KEYS[4], KEYS[3], tonumber(ARGV[6]))
return {now, 1}
