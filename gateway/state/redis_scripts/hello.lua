-- ARGV: which server this is, and whether what is here is not to be trusted. Data that another server wrote may
-- lack its last writes. Gives since when the data is this server's.
epoch()
-- Numbers are drawn from the time: one that is to come was drawn before the clock was set back.
local ahead = tonumber(redis.call('HGET', root, 'n') or '0') > now + 5000
if redis.call('HGET', root, 'srv') ~= ARGV[2] or ARGV[3] == '1' or ahead then
  local number = forget_all()
  accepted_lost()
  redis.call('HSET', root, 'srv', ARGV[2], 'since', whole(number))
end
redis.call('PEXPIRE', root, ROOT_TTL)
return {now, redis.call('HGET', root, 'since')}
