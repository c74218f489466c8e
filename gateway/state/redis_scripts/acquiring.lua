-- Gives whether the lock is `held` by the token, or `lost`: what its process held may be others' by now. Where it is
-- not free, nothing is done.
local function try_acquire(token, exclusive)
  if not alive(token) then return 'lost' end
  local found = redis.call('HMGET', lock, 'x', 'w')
  if found[1] or found[2] then return false end
  if exclusive and redis.call('EXISTS', lock) == 1 then return false end
  take(token, exclusive)
  redis.call('PEXPIRE', lock, LOCK_TTL)
  return 'held'
end
