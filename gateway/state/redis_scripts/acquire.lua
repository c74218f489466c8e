-- ARGV: the token, whether it is to be exclusive, the caller, how many of the caller may wait.
local token, wants, caller = ARGV[2], ARGV[3] == '1', ARGV[4]
local at_once = try_acquire(token, wants)
if at_once then return {now, at_once} end
local shared, exclusive, waiting = grant()
if #waiting == 0 and not exclusive and not (wants and shared > 0) then
  take(token, wants)
  redis.call('PEXPIRE', lock, LOCK_TTL)
  return {now, 'held'}
end
local queue
for _, one in ipairs(waiting) do
  if one[1] == caller then queue = one[2] end
end
if not queue then
  queue = {}
  waiting[#waiting + 1] = {caller, queue}
end
if #queue >= tonumber(ARGV[5]) then return {now, 'busy', #queue} end
queue[#queue + 1] = {token, wants and 1 or 0}
keep(waiting)
return {now, 'waits'}
