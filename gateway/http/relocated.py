"""
What a reply says of its own place, as it is for a client that came through a prefix: Location, and the path
and domain of cookies. Pure.
"""

from __future__ import annotations

import re

from gateway.http.destinations import below
from gateway.http.headers import Fields, Header

_match_authority = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL).fullmatch


def relocated(headers: Fields, authority: bytes, prefix: bytes, public: bytes) -> Fields:
    """
    For an upstream that is called as `authority` (host and port), with `prefix` before each path; clients
    call with `public` before it. What leads elsewhere stays.
    """
    changed: list[Header] = []
    for name, value in headers:
        if name == b"location":
            value = _location(value, authority, prefix, public)
        elif name == b"set-cookie":
            value = _cookie(value, authority, prefix, public)
        changed.append((name, value))
    return Fields(changed, headers.reason)


def _location(value: bytes, authority: bytes, prefix: bytes, public: bytes) -> bytes:
    absolute = _match_authority(value)
    if absolute is None:
        own = value[:1] == b"/" and value[:2] != b"//"
        return _moved(value, prefix, public) if own else value
    if absolute[1].lower() != authority.lower():
        return value
    # RFC 9110 section 10.2.2: relative to the target that the client has asked for, so it stays here.
    rest = absolute[2] if absolute[2][:1] == b"/" else b"/" + absolute[2]
    return _moved(rest, prefix, public)


def _moved(path: bytes, prefix: bytes, public: bytes) -> bytes:
    inner = below(prefix, path)
    moved = public + (path if inner is None else inner)
    # Two slashes would begin an authority.
    return b"/" + moved.lstrip(b"/")


def _cookie(value: bytes, authority: bytes, prefix: bytes, public: bytes) -> bytes:
    pair, *attributes = value.split(b";")
    # RFC 6265bis section 4.1.3.2: such a one has just this path.
    fixed = pair.strip().lower().startswith(b"__host-")
    host = authority.rpartition(b":")[0] if b":" in authority else authority
    kept = [pair]
    for attribute in attributes:
        name, equals, said = (part.strip() for part in attribute.partition(b"="))
        kind = name.lower()
        if kind == b"domain" and _covers(said.lower().lstrip(b"."), host.lower()):
            continue  # without one it is the gateway's own
        if kind == b"path" and equals and said[:1] == b"/" and not fixed:
            attribute = b" Path=" + _moved(said, prefix, public)
        kept.append(attribute)
    return b";".join(kept)


def _covers(domain: bytes, host: bytes) -> bool:
    return domain == host or (domain != b"" and host.endswith(b"." + domain))
