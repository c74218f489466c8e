local before = generation(KEYS[2])
local number = draw()
redis.call('HSET', KEYS[2], 's', whole(before))
set_generation(KEYS[2], number)
return {now, whole(before), whole(number)}
