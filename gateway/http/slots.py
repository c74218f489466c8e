"""
Slots: they stand in header fields for the values that differ from call to call, so that what follows from the
rest is made once for all these calls.

Whatever is made of such fields has the slots in it, as text; the call's own values are put in at the end.
Pure.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, TypeAlias

from msgspec import Struct

from gateway.http.grammar import METHOD_OVERRIDES
from gateway.http.headers import Fields, Headers

# A process's own, so that nothing that is ever sent to it can look like a slot.
_MARK: Final = secrets.token_hex(16).encode()
Values: TypeAlias = tuple[bytes, ...]  # of one call, in the order of their slots

_split = re.compile(rb"<%b(-?[0-9]+)>" % _MARK).split

# By their values something is decided here, for all calls that have them. Every other field has a slot: its
# value goes on as it is, and at most says who calls (state/credentials.py).
FIXED: Final = METHOD_OVERRIDES | frozenset(
    {
        b"accept",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-type",
        b"expect",
        b"host",
        b"max-forwards",
        b"transfer-encoding",
        b"upgrade",
        b"via",
    }
)


class Slot(bytes):
    """Stands for the value with this `number` among those of the call, from 0, or from its end."""

    number: int


def _slot(number: int) -> Slot:
    slot = Slot(b"<%b%d>" % (_MARK, number))
    slot.number = number
    return slot


SLOTS: Final = tuple(map(_slot, range(48)))
# A call's last two values: its client's address, and that as a node of Forwarded (RFC 7239 section 6).
PEER, NODE = _slot(-2), _slot(-1)


@lru_cache(maxsize=4096)
def peer(address: str) -> Values:
    """For PEER and NODE."""
    plain = address.encode("ascii", "replace")
    return plain, b'"[%s]"' % plain if b":" in plain else plain or b"unknown"


class SlottedText(Struct, frozen=True):
    """
    A text with slots, made ready to be filled. `numbers` are those of its slots, and `pick` gives these of a
    call's values.
    """

    form: bytes
    numbers: tuple[int, ...]
    pick: Callable[[Values], Any] | None

    @classmethod
    def of(cls, text: bytes) -> SlottedText:
        literals = _split(text)
        if len(literals) == 1:
            return cls(text, (), None)
        form = b"%b".join([literal.replace(b"%", b"%%") for literal in literals[::2]])
        numbers = tuple(map(int, literals[1::2]))
        return cls(form, numbers, itemgetter(*numbers))

    def filled(self, values: Values) -> bytes:
        return self.form if self.pick is None else self.form % self.pick(values)


def filled(headers: Headers, values: Values) -> Headers:
    """The fields with the call's own values."""
    if not values:
        return headers
    return Fields([(name, SlottedText.of(value).filled(values)) for name, value in headers])
