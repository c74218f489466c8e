-- ARGV: milliseconds, whether it is a new one. KEYS: the lease, and the locks that were held for long.
if ARGV[3] == '1' then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
elseif redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then
  return {now, 'lost'}
end
for i = 3, #KEYS do redis.call('PEXPIRE', KEYS[i], LOCK_TTL) end
return {now, 'good'}
