-- KEYS: the credential's pause, the index. ARGV: microseconds, the refusal, how many at most.
local ends = now + tonumber(ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'u', whole(ends), 'b', ARGV[3])
redis.call('PEXPIRE', KEYS[2], math.max(1, math.ceil(tonumber(ARGV[2]) / 1000)))
bounded(KEYS[3], KEYS[2], tonumber(ARGV[4]))
return {now}
