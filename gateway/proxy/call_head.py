"""
What the header fields of a call say, made once for all calls that have them.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.http import forwarding, trace_context
from gateway.http.forwarding import Hop
from gateway.http.headers import Fields, by_name, method_overrides
from gateway.state.credentials import CredentialFingerprints

FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class CallHead(Struct, frozen=True):
    """
    `fields` is name to value, of a repeated field the last line's, with the slots. `upstream` goes on to the
    upstream, without what was `dropped`: so many fields that imitate others. `nominated` is a field that
    Connection may not name; `looped`: the call has been here before; `bodiless`: it has no body; `overrides`
    are the methods that its fields claim, `claimed` those of them that the upstream sees; `caller_tells_all`
    as in state/credentials.py. `traceparent`: the field's value, where there is one such field.
    """

    fields: dict[bytes, bytes]
    upstream: Fields
    dropped: int
    looped: bool
    nominated: bytes | None
    overrides: list[str]
    bodiless: bool
    caller_tells_all: bool = False
    traceparent: bytes | None = None
    claimed: Sequence[str] = ()

    @classmethod
    def of(
        cls, headers: Fields, hop: Hop, credentials: CredentialFingerprints, trusted: bool, version: str
    ) -> CallHead:
        fields = by_name(headers)
        upstream = forwarding.upstream_request_headers(headers, hop, trusted, version)
        return cls(
            fields,
            upstream,
            upstream.dropped,
            forwarding.looped(headers, hop),
            credentials.nominated(headers),
            method_overrides(headers),
            FRAMING.isdisjoint(fields),
            credentials.caller_tells_all(headers, upstream),
            trace_context.only_traceparent(headers),
            upstream.derived(method_overrides),
        )
