"""
Which calls may not be touched, whatever their bodies are (C6): their header fields tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gateway.http import headers as h
from gateway.http.grammar import METHOD_OVERRIDES
from gateway.http.headers import Fields
from gateway.repairs.repair import Repair

# A body under one of these can't be changed unnoticed: RFC 9530 (Content-Digest, Repr-Digest), RFC 9421
# (Signature, Signature-Input), and what came before them, RFC 3230 (Digest) and RFC 1864 (Content-MD5).
SIGNED = frozenset(
    {b"content-digest", b"repr-digest", b"digest", b"content-md5", b"signature", b"signature-input"}
)
# What clients send with JSON by mistake, beside all of text/*. Other types say something of their own:
# multipart, JSON Patch and other +json, XML …
MISTAKEN = frozenset({b"", b"application/x-www-form-urlencoded", b"application/octet-stream"})


def exemption(headers: Fields, repairs: Sequence[Repair]) -> str | None:
    """The reason why the call goes on as it came; None where it may be repaired."""
    fields = headers.derived(h.by_name)
    if not SIGNED.isdisjoint(fields):
        return "signed-body"
    # RFC 9110 section 7.7: a proxy must not transform the content then (RFC 9111 section 5.2.1.6).
    if b"cache-control" in fields and any(
        b"no-transform" in value.lower() for value in h.every(headers, b"cache-control")
    ):
        return "no-transform"
    if not METHOD_OVERRIDES.isdisjoint(fields) and not _claimed(headers, repairs):
        return "method-override"
    types = h.every(headers, b"content-type")
    if not types:
        return None
    if len(types) == 1 and (_is_json_or_mistaken(types[0]) or _accepted(types[0], repairs)):
        return None
    return "media-type"


def _claimed(headers: Fields, repairs: Sequence[Repair]) -> bool:
    methods = h.method_overrides(headers)
    return any(repair.claims(methods) for repair in repairs)


@lru_cache(maxsize=256)
def _is_json_or_mistaken(content_type: bytes) -> bool:
    media_type = h.media_type(content_type)[0]
    return media_type == b"application/json" or media_type in MISTAKEN or media_type.startswith(b"text/")


def _accepted(content_type: bytes, repairs: Sequence[Repair]) -> bool:
    media_type = h.media_type(content_type)[0]
    return any(repair.accepts(media_type) for repair in repairs)
