-- The common fill: a shared lock where it is free at once, and all that the fill needs to know. ARGV: the token, and
-- which reading the process has. KEYS: the lock, and those of `seen`.
local at_once = try_acquire(ARGV[2], false)
if at_once ~= 'held' then return {now, at_once or 'taken'} end
return {now, at_once, seen(3, ARGV[3])}
