-- ARGV: which server this is, and whether what is here is not to be trusted. Data that another server wrote may
-- lack its last writes. Gives since when the data is this server's.
-- Since Redis 7 a user that may do too little is told what it is, before anything is done by halves.
if redis.acl_check_cmd then
  local calls = {
    {'DEL', root}, {'EXISTS', root}, {'SET', root, '1'}, {'PEXPIRE', root, '1'}, {'HGET', root, 'n'},
    {'HSET', root, 'n', '1'}, {'HDEL', root, 'n'}, {'HMGET', root, 'n'}, {'HGETALL', root}, {'HEXISTS', root, 'n'},
    {'ZADD', root, '1', 'n'}, {'ZCARD', root}, {'ZPOPMIN', root, '1'}, {'PUBLISH', root .. ':all', ''},
  }
  for _, words in ipairs(calls) do
    if not redis.acl_check_cmd(unpack(words)) then
      return redis.error_reply('NOPERM this user has no permissions to run the ' .. words[1] .. ' command')
    end
  end
end
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
