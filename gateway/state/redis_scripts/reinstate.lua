-- ARGV: the generation from before the write, and the one since.
if whole((generation(KEYS[2]))) == ARGV[3] then
  redis.call('HDEL', KEYS[2], 's')
  redis.call('HSET', KEYS[2], 'g', ARGV[2])
end
return {now}
