-- What one fill needs to know. `at`: of its keys, from the conversation's on: generation, reading, accepted, pause.
local function seen(at, had)
  local current = generation(KEYS[at])
  local reading = redis.call('HMGET', KEYS[at + 1], 'g', 't', 'n')
  local body = false
  if reading[1] and reading[3] ~= had then body = redis.call('HGET', KEYS[at + 1], 'b') end
  local accepted = redis.call('HMGET', KEYS[at + 2], 'v', 's', 'u')
  local lost = false
  if not accepted[2] then lost = redis.call('HGET', root, 'd') end
  local pause = redis.call('HMGET', KEYS[at + 3], 'u', 'b')
  return {whole(current), reading[1], reading[2], reading[3], body, accepted[1], accepted[2], accepted[3], lost,
    pause[1], pause[2]}
end
