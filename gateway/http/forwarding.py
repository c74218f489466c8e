"""
What an intermediary does to the fields of a message that it passes on (RFC 9110 section 7.6). Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from gateway.http import headers as h
from gateway.http.grammar import HOP_BY_HOP, METHOD_OVERRIDES, NEVER_NOMINATED, imitations
from gateway.http.headers import Fields, Header, Headers
from gateway.http.slots import NODE, PEER

# What a client says about the hops before it: believed only from a configured proxy.
FORWARDING = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)
_SELECTING = frozenset(
    {
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
    }
)
# Fields with a dash that mean something to the gateway. One that imitates such a field with an underscore is
# dropped: the upstream may take it for the field itself, which was read, replaced or refused here.
IMITATED = imitations(
    HOP_BY_HOP
    | FORWARDING
    | METHOD_OVERRIDES
    | NEVER_NOMINATED
    | _SELECTING
    | {
        b"content-digest",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-location",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"gateway-rewrite",
        b"idempotency-key",
        b"want-content-digest",
        b"want-repr-digest",
    }
)
REPLACED = frozenset({b"host", b"x-request-id", b"via", b"expect", *HOP_BY_HOP, *IMITATED})
UNTRUSTED = REPLACED | FORWARDING
TRUSTED = REPLACED | {b"forwarded", b"x-forwarded-for"}
NOT_FOR_CLIENTS = HOP_BY_HOP | {b"gateway-rewrite"}

# A look-up is a GET of the gateway's own: nothing of the PATCH's body, conditions, cache directives or
# disguises goes with it.
NOT_LOOKED_UP_WITH = METHOD_OVERRIDES | frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"cache-control",
        b"content-length",
        b"content-type",
        b"expect",
        b"idempotency-key",
        b"pragma",
        b"prefer",
        b"range",
    }
)
_NOT_LOOKED_UP_WITH_PREFIXES = (b"content-", b"if-")
_LOOKED_UP_WITH = (
    (b"accept", b"application/json"),
    # A compressed reply could hide a bomb, and would have to be inflated before it is read.
    (b"accept-encoding", b"identity"),
    # What a cache in between has may be older than the state is allowed to be (RFC 9111 section 5.2.1.4).
    (b"cache-control", b"no-cache"),
)
_PLAIN_RANGES = frozenset({b"*/*", b"application/*", b"application/json"})

# Parameters of a query that are credentials as a rule, in lower case, without what is no letter or digit.
_CREDENTIALS = frozenset(
    {
        "accesskey", "accesstoken", "apikey", "apitoken", "appkey", "assertion", "auth", "authkey",
        "authorization", "authtoken", "awsaccesskeyid", "bearer", "clientsecret", "credential", "credentials",
        "hmac", "idtoken", "jsessionid", "jwt", "key", "passwd", "password", "pwd", "secret", "session",
        "sessionid", "sessiontoken", "sid", "sig", "sign", "signature", "subscriptionkey", "ticket", "token",
        "usertoken", "xamzcredential", "xamzsecuritytoken", "xamzsignature", "xapikey", "xgoogcredential",
        "xgoogsignature",
    }
)  # fmt: skip

# Enough for every id that a tracing system makes, and nothing that needs quoting in a log.
_ID = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/+=@")


@dataclass(frozen=True, slots=True, eq=False)
class Hop:
    """
    This gateway as others see it. `via` is its member of Via, without the protocol version; `imitated` are
    names to be dropped beside IMITATED: those that imitate the configured credentials.
    """

    host: bytes | None
    via: bytes
    trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    imitated: frozenset[bytes] = frozenset()

    def trusts(self, address: str) -> bool:
        if not self.trusted:
            return False
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self.trusted)


def sane_id(value: bytes | None) -> bool:
    return value is not None and 0 < len(value) <= 128 and _ID.issuperset(value)


def looped(headers: Headers, hop: Hop) -> bool:
    return any(hop.via in value for value in h.every(headers, b"via"))


def forwards_left(headers: Headers) -> int | None:
    """What Max-Forwards says (RFC 9110 section 7.6.2), less if that is a lot; None where it says nothing."""
    value = h.first(headers, b"max-forwards")
    if value is None or not value.isdigit():
        return None
    return int(value.lstrip(b"0")[:9] or b"0")


class UpstreamRequestHeaders(Fields):
    """The fields for the upstream. `dropped`: how many were left out because they imitate another."""

    __slots__ = ("dropped",)

    def __init__(self, fields: list[Header], dropped: int) -> None:
        super().__init__(fields)
        self.dropped = dropped


def upstream_request_headers(
    headers: Headers, hop: Hop, trusted: bool, version: str
) -> UpstreamRequestHeaders:
    """
    The fields for the upstream but the request's id, framing left to whoever writes the body. `hop.host`
    replaces Host (None keeps the client's); `trusted`: what the peer says of the hops before it is believed;
    `version` is that of the protocol in which the request came. The peer's address is in slots.
    """
    unwanted = TRUSTED if trusted else UNTRUSTED
    host = b""
    via: list[bytes] = []
    forwarded: list[bytes] = []
    addresses: list[bytes] = []
    result: list[Header] = []
    named = False
    dropped = 0
    for pair in headers:
        name, value = pair
        if name not in unwanted:
            result.append(pair)
        elif name == b"host":
            host = value
        elif name == b"via":
            via.append(value)
        elif name == b"connection":
            named = True
        elif trusted and name == b"forwarded":
            forwarded.append(value)
        elif trusted and name == b"x-forwarded-for":
            addresses.append(value)
        elif b"_" in name:
            dropped += 1
    if hop.imitated:
        before = len(result)
        result = h.without(result, hop.imitated)
        dropped += before - len(result)
    if named:
        result = h.without(result, h.nominated(headers))
    result.insert(0, (b"host", host if hop.host is None else hop.host))
    forwarded.append(b'for=%s;host="%s";proto=http' % (NODE, _escaped(host)))
    result.append((b"forwarded", b", ".join(forwarded)))
    addresses.append(PEER)
    result.append((b"x-forwarded-for", b", ".join(addresses)))
    if not trusted or h.first(headers, b"x-forwarded-proto") is None:
        result.append((b"x-forwarded-proto", b"http"))
    if not trusted or h.first(headers, b"x-forwarded-host") is None:
        result.append((b"x-forwarded-host", host))
    via.append(b"%s %s" % (version.encode(), hop.via))
    result.append((b"via", b", ".join(via)))
    return UpstreamRequestHeaders(result, dropped)


EXPOSED = b"gateway-rewrite, server-timing, x-request-id"
# What says when a rule's repairs end. An upstream's own stands: two dates would contradict each other.
ONCE = frozenset({b"deprecation", b"sunset"})
ANNOUNCING = ONCE | {b"link"}


class ClientResponseHeaders(Struct, frozen=True):
    """
    The fields of an upstream's reply that go on to the client. `has_request_id`: the upstream gave one;
    `has_cors`: it lets scripts of another origin read the reply; `is_json`: it says that the body is JSON;
    `announced` has the fields of ONCE that it sent.
    """

    headers: Fields
    has_request_id: bool
    has_cors: bool
    is_json: bool
    announced: frozenset[bytes]

    def extra_headers(self, ours: list[Header], request_id: Header) -> list[Header]:
        """`ours` and what must go with them: scripts may read them, and there is an id."""
        if self.announced:
            ours = [pair for pair in ours if pair[0] not in self.announced]
        if ours and self.has_cors:
            exposed = [EXPOSED, *[name for name, _ in ours if name in ANNOUNCING]]
            ours.append((b"access-control-expose-headers", b", ".join(exposed)))
        if not self.has_request_id:
            ours.append(request_id)
        return ours


def client_response_headers(headers: Headers) -> ClientResponseHeaders:
    """Drops hop-by-hop fields, and any Gateway-Rewrite that the upstream sent in the gateway's name."""
    names = h.by_name(headers)
    return ClientResponseHeaders(
        h.without(headers, NOT_FOR_CLIENTS | h.nominated(headers)),
        b"x-request-id" in names,
        b"access-control-allow-origin" in names,
        h.is_json(headers),
        ONCE.intersection(names),
    )


def _escaped(value: bytes) -> bytes:
    """For a quoted string (RFC 7239 section 4): a port's colon is in no token."""
    return value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def looked_up_with(headers: Headers, unwanted: Container[bytes] = NOT_LOOKED_UP_WITH) -> list[Header]:
    """What a look-up carries of the fields that go upstream with its call."""
    return [
        pair
        for pair in headers
        if (name := pair[0]) not in unwanted and not name.startswith(_NOT_LOOKED_UP_WITH_PREFIXES)
    ]


def lookup_request_headers(headers: Headers) -> Fields:
    """From fields that go upstream with the call: its caller and its trace, as a GET for plain JSON."""
    return Fields([*looked_up_with(headers), *_LOOKED_UP_WITH])


def carried_query(target: bytes, names: Container[str]) -> bytes | None:
    """
    What a look-up carries of its call's query: the parameters of these names, raw and in their order. None
    where another looks like a credential, which the look-up would lack.
    """
    carried = []
    for part in target.partition(b"?")[2].split(b"&"):
        if _parameter(part) in names:
            carried.append(part)
        # Some upstreams read ";" as "&".
        elif any(
            re.sub("[^a-z0-9]", "", _parameter(one).lower()) in _CREDENTIALS for one in part.split(b";")
        ):
            return None
    return b"&".join(carried)


def _parameter(part: bytes) -> str:
    return unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")).decode("utf-8", "replace")


def is_like_lookup(headers: Headers) -> bool:
    """
    Whether a client's own GET with these fields gets what a look-up would get: the whole of the document, in
    JSON as it is given to whoever asks for nothing more exact, and from no cache that it lets be stale.
    """
    accepts = None
    for name, value in headers:
        if name in {b"range", b"prefer"} or name.startswith(b"if-") or name in METHOD_OVERRIDES:
            return False
        if name == b"cache-control" and (b"stale" in value.lower() or b"cached" in value.lower()):
            return False
        if name == b"accept":
            for member in value.split(b","):
                kind, parameters = h.media_type(member)
                exact = parameters.keys() - {b"q", b"charset"}
                if kind.endswith(b"+json") or (kind in _PLAIN_RANGES and exact):
                    return False
                refused = parameters.get(b"q", b"1").rstrip(b"0").rstrip(b".") in {b"", b"0"}
                if kind == b"application/json" and refused:
                    return False
                accepts = accepts or (kind in _PLAIN_RANGES and not refused)
    return accepts is not False


def varies_beyond(reply: Headers, headers: Headers, ignored: Container[bytes]) -> bool:
    """
    Whether the reply to a request with these fields may be another for a look-up, or for a caller who differs
    in fields that are ignored (RFC 9110 section 12.5.5). A content coding does not count: it is taken off.
    """
    names = {name.lower() for name in h.members(reply, b"vary")} - {b"accept-encoding"}
    if not names:
        return False
    looked_up = lookup_request_headers(headers)
    return any(
        name == b"*" or name in ignored or h.every(headers, name) != h.every(looked_up, name)
        for name in names
    )
