if KEYS[2] then
  epoch()
  redis.call('HDEL', KEYS[2], 's')
  set_generation(KEYS[2], draw())
else
  epoch()
  forget_all()
  redis.call('PUBLISH', root .. ':all', '')
end
return {now}
