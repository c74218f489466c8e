"""
A Redis server in virtual time: it runs the gateway's own scripts, in Lua 5.1, on a model of what Redis keeps.

Only the commands that the scripts use are there, and of each only what they use of it. Time is the loop's;
what is lost, late, forgotten or set back is for a schedule to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from lupa import lua51
from lupa.lua51 import lua_type

ZSet = dict[bytes, float]
Value = dict[bytes, bytes] | ZSet | bytes


# One for all models: none of its scripts keeps anything in it.
LUA = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
_answers_to = LUA.eval(b"function(call) redis.call = call end")


@cache
def _compiled(text: bytes) -> Any:
    return LUA.eval(b"function(KEYS, ARGV)\n" + text + b"\nend")


class WrongCall(Exception):
    """A command, or an argument of one, that the model does not know."""


class RedisModel:
    """`now` gives microseconds. `publish` is handed each message with its channel."""

    def __init__(self, now: Callable[[], int], publish: Callable[[bytes, bytes], None]) -> None:
        self._now = now
        self._publish = publish
        self.data: dict[bytes, Value] = {}
        self.ends: dict[bytes, int] = {}  # microseconds

    # --- what is kept

    def snapshot(self) -> tuple[dict[bytes, Value], dict[bytes, int]]:
        # Bytes and numbers never change: copying the tables is enough, and a tenth of a deep copy.
        return {key: _copied(value) for key, value in self.data.items()}, dict(self.ends)

    def restore(self, kept: tuple[dict[bytes, Value], dict[bytes, int]]) -> None:
        data, ends = kept
        self.data, self.ends = {key: _copied(value) for key, value in data.items()}, dict(ends)

    def flush(self) -> None:
        self.data, self.ends = {}, {}

    def _at(self, key: bytes) -> Any:
        if key in self.ends and self.ends[key] <= self._now():
            del self.data[key], self.ends[key]
        return self.data.get(key)

    def _drop(self, key: bytes) -> int:
        there = self._at(key) is not None
        self.data.pop(key, None)
        self.ends.pop(key, None)
        return int(there)

    # --- scripts

    def evaluate(self, text: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        """What the client gets, as RESP3 has it."""
        _answers_to(self._call)
        return self._told(_compiled(text)(LUA.table(*keys), LUA.table(*arguments)))

    def _told(self, value: Any) -> Any:
        """As Redis turns Lua's values into replies: numbers lose their fractions, lists end at a nil."""
        if lua_type(value) == "table":
            found: list[Any] = []
            while (one := value[len(found) + 1]) is not None:
                found.append(self._told(one))
            return found
        if value is None or value is False:
            return None
        if value is True:
            return 1
        return int(value) if isinstance(value, int | float) else value

    def _call(self, name: bytes, *given: Any) -> Any:
        words = [_word(one) for one in given]
        command = getattr(self, f"_do_{name.decode().lower()}", None)
        if command is None:
            raise WrongCall(name.decode())
        return self._for_lua(command(*words))

    def _for_lua(self, reply: Any) -> Any:
        if isinstance(reply, list):
            return LUA.table(*[self._for_lua(one) for one in reply])
        return False if reply is None else reply

    # --- commands

    def _do_time(self) -> list[bytes]:
        now = self._now()
        return [b"%d" % (now // 1_000_000), b"%d" % (now % 1_000_000)]

    def _do_exists(self, key: bytes) -> int:
        return int(self._at(key) is not None)

    def _do_keys(self, pattern: bytes) -> list[bytes]:
        assert pattern.endswith(b"*")
        return [key for key in list(self.data) if key.startswith(pattern[:-1]) and self._at(key) is not None]

    def _do_del(self, key: bytes) -> int:
        return self._drop(key)

    def _do_pexpire(self, key: bytes, milliseconds: bytes) -> int:
        if self._at(key) is None:
            return 0
        self.ends[key] = self._now() + int(milliseconds) * 1000
        return 1

    def _do_set(self, key: bytes, value: bytes, px: bytes, milliseconds: bytes) -> bytes:
        assert px == b"PX"
        self.data[key] = value
        self.ends[key] = self._now() + int(milliseconds) * 1000
        return b"OK"

    def _do_hget(self, key: bytes, field: bytes) -> bytes | None:
        return (self._at(key) or {}).get(field)

    def _do_hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        return [(self._at(key) or {}).get(field) for field in fields]

    def _do_hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._at(key) or {}).items() for part in pair]

    def _do_hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self._at(key) or {}))

    def _do_hset(self, key: bytes, *pairs: bytes) -> int:
        kept = self._at(key)
        if kept is None:
            kept = self.data[key] = {}
        kept.update(zip(pairs[::2], pairs[1::2], strict=True))
        return 0

    def _do_hdel(self, key: bytes, field: bytes) -> int:
        kept = self._at(key) or {}
        there = kept.pop(field, None) is not None
        if there and not kept:
            self._drop(key)
        return int(there)

    def _do_zadd(self, key: bytes, score: bytes, member: bytes) -> int:
        kept = self._at(key)
        if kept is None:
            kept = self.data[key] = {}
        kept[member] = float(score)
        return 1

    def _do_zcard(self, key: bytes) -> int:
        return len(self._at(key) or {})

    def _do_zpopmin(self, key: bytes, count: bytes) -> list[bytes]:
        kept = self._at(key) or {}
        first = sorted(kept.items(), key=lambda one: (one[1], one[0]))[: int(count)]
        for member, _ in first:
            del kept[member]
        if not kept:
            self._drop(key)
        return [part for member, score in first for part in (member, b"%.17g" % score)]

    def _do_publish(self, channel: bytes, message: bytes) -> int:
        self._publish(channel, message)
        return 0


def _copied(value: Value) -> Value:
    return value if isinstance(value, bytes) else cast(Value, dict(value))


def _word(given: Any) -> bytes:
    """As Redis makes a command's words of Lua's values."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return (
            b"%d" % given
            if math.isfinite(given) and given == int(given) and abs(given) < 1e15
            else (b"%.17g" % given)
        )
    raise WrongCall(f"a word is {given!r}")


class _Packed:
    """cmsgpack: what is packed is only ever unpacked by the same script, so its form is not looked at."""

    def pack(self, value: Any) -> bytes:
        return repr(self._plain(value)).encode("latin-1")

    def unpack(self, packed: bytes) -> Any:
        return self._table(eval(packed.decode("latin-1"), {"__builtins__": {}}))

    def _plain(self, value: Any) -> Any:
        if lua_type(value) == "table":
            return [self._plain(value[at + 1]) for at in range(len(value))]
        return value

    def _table(self, value: Any) -> Any:
        if isinstance(value, list):
            return LUA.table(*[self._table(one) for one in value])
        return value


LUA.eval(b"function(pack, unpacked) redis = {}; cmsgpack = {pack = pack, unpack = unpacked} end")(
    _Packed().pack, _Packed().unpack
)
