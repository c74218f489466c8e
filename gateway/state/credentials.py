"""
Who is calling, as a keyed hash: enough to tell callers apart, nothing to learn a secret from (S6, L3).

Calls have one fingerprint only if their look-ups would be the same request. So every field that a look-up
carries counts, but for a few that can neither authorise nor select.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import msgspec

from gateway.http.forwarding import NOT_LOOKED_UP_WITH, carried_query, looked_up_with
from gateway.http.grammar import HOP_BY_HOP
from gateway.http.headers import Fields, Headers, first, nominated
from gateway.http.slots import Slot, SlottedText, Values, filled

# Who sent a message on its way, and which of many it is: the same caller differs in them from call to call.
# What says which host or resource was asked for (X-Forwarded-Host, -Proto, -Prefix) may select, and counts.
IGNORED = frozenset(
    {
        b"user-agent",
        # Trace context.
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"b3",
        b"x-b3-flags",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-spanid",
        b"x-b3-traceid",
        b"sentry-trace",
        b"uber-trace-id",
        b"x-amzn-trace-id",
        b"x-cloud-trace-context",
        # Ids of one request.
        b"correlation-id",
        b"request-id",
        b"x-correlation-id",
        b"x-request-id",
        b"x-request-start",
        # Who passed it on.
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)

NAMES_KEPT = 1_000
CALLERS_KEPT = 4_096
NAME_KEPT = 64  # bytes

_encoded = msgspec.msgpack.Encoder().encode
_by_name = itemgetter(0)


class CredentialFingerprints:
    def __init__(
        self,
        upstream: str,
        headers: Iterable[str] = (),
        ignore: Iterable[str] = (),
        query: Iterable[str] = (),
        *,
        key: bytes,
    ) -> None:
        """
        `headers` count even if IGNORED has them, `ignore` do not count; `query`: parameters that go on to the
        look-up. Processes with one `key` have one fingerprint for a caller; whoever does not have it can't
        find out whose it is.
        """
        if not 16 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError("a fingerprint's key has 16 to 64 bytes")
        self.ignored = (IGNORED | _lowered(ignore)) - _lowered(headers)
        self._uncounted = NOT_LOOKED_UP_WITH | self.ignored
        self._known: dict[bytes, bool] = {}  # whether a name counts: most calls have no others
        self._query = frozenset(query)
        self._authorising = (b"authorization", *sorted(_lowered(headers)), b"cookie")
        # RFC 9111 section 4: the same target on another upstream is another resource.
        self._keyed = hashlib.blake2b(_encoded(upstream), digest_size=16, key=key)

    def of(self, headers: Headers, query: bytes = b"", certificate: bytes = b"") -> str:
        """
        `headers` go upstream with the call; of its query what the look-up carries; `certificate` is that of
        the client's TLS. Fields of one name count in their order (RFC 9110 section 5.3).
        """
        known = self._known
        counted = [
            pair
            for pair in headers
            if known.get(pair[0], True) and (pair[0] in known or self._counts(pair[0]))
        ]
        counted.sort(key=_by_name)
        digest = self._keyed.copy()
        # Lengths stand before all parts, so that no two are read as others.
        digest.update(_encoded((query, certificate, counted)))
        return digest.hexdigest()

    def caller(self, headers: Headers, address: str, query: bytes = b"", certificate: bytes = b"") -> str:
        """
        Who the log says it is, and whose share of what is scarce a call takes. Unlike the fingerprint it does
        not change with fields that authorise nobody, or one caller would have as many shares as it likes. Who
        says nothing of itself is its certificate in TLS, or its address; `query` is a credential that came
        there.
        """
        named = self._named(headers)
        if named is None:
            named = (b"?", query) if query else (b"", b"" if certificate else address.encode())
        return self._digest(*named, certificate)

    def caller_of(
        self, headers: Fields, values: Values, address: str, target: bytes, certificate: bytes = b""
    ) -> str:
        """`caller`, with `values` for the slots in the fields."""
        named = headers.derived(self._named)
        if named is None:
            query = self.carried_query(target) if b"?" in target else None
            return self.caller((), address, query or b"", certificate)
        name, value = named
        return self._digest(name, values[value.number] if isinstance(value, Slot) else value, certificate)

    def _named(self, headers: Headers) -> tuple[bytes, bytes] | None:
        """The first field that says who calls."""
        for name in self._authorising:
            value = first(headers, name)
            if value is not None:
                return name, value
        return None

    def _digest(self, name: bytes, value: bytes, certificate: bytes = b"") -> str:
        digest = self._keyed.copy()
        digest.update(_encoded((name, value, certificate) if certificate else (name, value)))
        return digest.hexdigest()

    def of_call(
        self, headers: Fields, query: bytes, certificate: bytes, values: Values, caller: str = ""
    ) -> str:
        """
        `of`, with `values` for the slots in the fields; remembered where these come again. Queries may be too
        many to be remembered. `caller` is that of the call, where it tells apart all that these fields do
        (`caller_tells_all`): then nothing else has to be hashed.
        """
        if query:
            return self.of(filled(headers, values), query, certificate)
        counted, known = headers.derived(self._counted)
        if counted is None:
            return headers.derived(self.of, b"", certificate)
        # Known by a keyed hash: no credential is kept beyond its connection.
        key = caller or self._digest(certificate, _encoded(counted(values)))
        fingerprint = known.get(key)
        if fingerprint is None:
            fingerprint = self.of(filled(headers, values), b"", certificate)
            if len(known) >= CALLERS_KEPT:
                known.clear()
            known[key] = fingerprint
        return fingerprint

    def _counted(self, headers: Headers) -> tuple[Callable[[Values], Any] | None, dict[str, str]]:
        """
        What picks the values that count from those of a call, None where none does; and the fingerprints that
        are known by them (S6).
        """
        counted = b"".join([value for name, value in headers if self._counts(name)])
        return SlottedText.of(counted).pick, {}

    def caller_tells_all(self, headers: Headers, upstream: Headers) -> bool:
        """
        Whether of the slots in `upstream`, made of `headers`, none counts but the one that names the caller:
        calls with these fields then have one fingerprint if they have one caller.
        """
        named = self._named(headers)
        counted = b"".join([value for name, value in upstream if self._counts(name)])
        return (
            named is not None
            and isinstance(named[1], Slot)
            and SlottedText.of(counted).numbers == (named[1].number,)
        )

    def carried_query(self, target: bytes) -> bytes | None:
        """What a look-up carries of the target's query, None where it would lose a credential."""
        return carried_query(target, self._query)

    def _counts(self, name: bytes) -> bool:
        """Whether a field of this name is a part of the fingerprint."""
        counts = bool(looked_up_with([(name, b"")], self._uncounted))
        if len(self._known) < NAMES_KEPT and len(name) < NAME_KEPT:
            self._known[name] = counts
        return counts

    def nominated(self, headers: Fields) -> bytes | None:
        """A field that counts, but would not go on since Connection names it."""
        names = nominated(headers) - HOP_BY_HOP
        if not names:
            return None
        return next((name for name, _ in headers if name in names and self._counts(name)), None)


def _lowered(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in names)
