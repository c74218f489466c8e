-- Gives up whatever the token holds or waits for.
local token = ARGV[2]
if redis.call('HGET', lock, 'x') == token then
  redis.call('HDEL', lock, 'x')
else
  redis.call('HDEL', lock, 's:' .. token)
end
if redis.call('HEXISTS', lock, 'w') == 1 then grant(token) end
return {now}
