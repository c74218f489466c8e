"""
A real Redis server with the clock of a schedule: the gateway's scripts run there, and ask it for everything
but the time.

Before each script stands what gives it that time, ends the keys whose time is over by it, and hands what the
script publishes to the schedule. So a run is the same as on the model, if the model is right.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

import hiredis

from tests.support.redis_servers import RedisProcess

# ARGV ends with the time, in microseconds. `ends`: when keys end, and which.
BEFORE = b"""
local real, published, ends, given = redis, {}, 'the ends of keys', ARGV
local now = tonumber(given[#given])
local ARGV = {unpack(given, 1, #given - 1)}
for _, key in ipairs(real.call('ZRANGEBYSCORE', ends, '-inf', now)) do
  real.call('DEL', key)
  real.call('ZREM', ends, key)
end
local function ending(key, milliseconds)
  if real.call('EXISTS', key) == 0 then return 0 end
  real.call('ZADD', ends, now + tonumber(milliseconds) * 1000, key)
  return 1
end
local redis = {call = function(name, key, ...)
  if name == 'TIME' then
    return {string.format('%.0f', math.floor(now / 1000000)), string.format('%.0f', now % 1000000)}
  elseif name == 'PUBLISH' then
    published[#published + 1] = {key, ...}
    return 0
  elseif name == 'PEXPIRE' then
    return ending(key, ...)
  elseif name == 'SET' then
    local value, _, milliseconds = ...
    real.call('SET', key, value)
    ending(key, milliseconds)
    return 'OK'
  end
  local reply = real.call(name, key, ...)
  if real.call('EXISTS', key) == 0 then real.call('ZREM', ends, key) end
  return reply
end}
local function script()
"""
AFTER = b"\nend\nreturn {script(), published}"
KEPT = b"""
local kept = {}
for _, key in ipairs(redis.call('KEYS', '*')) do kept[#kept + 1] = {key, redis.call('DUMP', key)} end
return kept
"""


class RedisOnAServer:
    """As RedisModel, on a server whose data it takes for its own."""

    def __init__(
        self, process: RedisProcess, now: Callable[[], int], publish: Callable[[bytes, bytes], None]
    ) -> None:
        self._now = now
        self._publish = publish
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(process.path))
        self._known: dict[bytes, bytes] = {}
        self._ask("HELLO", 3)
        self.flush()

    def _ask(self, *words: bytes | str | int) -> Any:
        self._socket.sendall(hiredis.pack_command(cast(Any, words)))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        if isinstance(reply, hiredis.ReplyError):
            raise AssertionError(reply)
        return reply

    def close(self) -> None:
        self._socket.close()

    def evaluate(self, text: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        name = self._known.get(text)
        if name is None:
            name = self._known[text] = self._ask("SCRIPT", "LOAD", BEFORE + text + AFTER)
        reply, published = self._ask("EVALSHA", name, len(keys), *keys, *arguments, self._now())
        for channel, message in published:
            self._publish(channel, message)
        return reply

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        return [(key, dump) for key, dump in self._ask("EVAL", KEPT, 0)]

    def restore(self, kept: list[tuple[bytes, bytes]]) -> None:
        self.flush()
        for key, dump in kept:
            self._ask("RESTORE", key, 0, dump)

    def flush(self) -> None:
        self._ask("FLUSHALL")
