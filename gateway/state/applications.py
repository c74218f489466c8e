"""
Which application a call is from, by what the client says of itself: a field that is configured, or the claim
of a JSON Web Token. Nothing of it is verified, and nothing depends on it: it is for the report alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from gateway.http.headers import Fields, first
from gateway.http.slots import Slot, Values

CALLERS_KEPT: Final = 4_096
LONGEST_TOKEN: Final = 8_192  # bytes
MOST: Final = 128  # characters of a name


class _Claims(Struct):
    """Names of RFC 9068, OpenID Connect, and of widely used issuers, in the order in which they are asked."""

    client_id: Any = None
    azp: Any = None
    cid: Any = None
    appid: Any = None


_claims = msgspec.json.Decoder(_Claims).decode


class Applications:
    def __init__(self, fields: Iterable[str] = ()) -> None:
        """`fields` are asked first, in their order."""
        self._fields = tuple(name.lower().encode() for name in fields)
        # By caller, who is known by the token: no token is kept.
        self._known: dict[str, str | None] = {}

    def of(self, caller: str, headers: Fields, values: Values) -> str | None:
        for name in self._fields:
            value = _value(headers, values, name)
            if value:
                return _shown(value.decode("utf-8", "replace"))
        try:
            return self._known[caller]
        except KeyError:
            pass
        if len(self._known) >= CALLERS_KEPT:
            self._known.clear()
        found = self._known[caller] = named_by(_value(headers, values, b"authorization") or b"")
        return found


def named_by(authorization: bytes) -> str | None:
    """The first claim that names an application, of a token whose signature nobody looked at."""
    scheme, _, token = authorization.partition(b" ")
    parts = token.strip().split(b".")
    if scheme.lower() != b"bearer" or len(parts) != 3 or len(token) > LONGEST_TOKEN:
        return None
    try:
        claims = _claims(base64.b64decode(parts[1] + b"=" * (-len(parts[1]) % 4), b"-_", validate=True))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for claim in (claims.client_id, claims.azp, claims.cid, claims.appid):
        if isinstance(claim, str) and claim:
            return _shown(claim)
    return None


def _value(headers: Fields, values: Values, name: bytes) -> bytes | None:
    value = headers.derived(first, name)
    return values[value.number] if isinstance(value, Slot) else value


def _shown(name: str) -> str:
    """No control character of anybody's is for a terminal, and a lone surrogate can't be stored."""
    return "".join([one if one.isprintable() else "\ufffd" for one in name[:MOST]])
