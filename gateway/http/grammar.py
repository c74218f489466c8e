"""
The grammar of HTTP/1.1 messages: token, field text, lengths, methods, the fields of one hop. Its only home.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from typing import Final

TCHAR: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2; a token is one or more
FIELD_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]"  # RFC 9110 section 5.5: what a field value is made of
FIELD_BYTES: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])  # the same, byte by byte
MAX_NAME: Final = 256  # bytes of a field name
FIELD_LINES: Final = rb"(?:%b{1,%d}+:%b*+\r\n)*+" % (TCHAR, MAX_NAME, FIELD_TEXT)

HEAD_END: Final = b"\r\n\r\n"

match_token = re.compile(rb"%b+" % TCHAR).fullmatch
match_name = re.compile(rb"%b{1,%d}" % (TCHAR, MAX_NAME)).fullmatch
match_field_text = re.compile(rb"%b*" % FIELD_TEXT).fullmatch
match_field_lines = re.compile(FIELD_LINES).fullmatch
match_length = re.compile(rb"[0-9]{1,18}").fullmatch  # below 2**63 in every implementation
# What can stand in no head, whatever follows: control characters, a bare CR or LF (RFC 9112 section 2.2).
search_unfit = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)").search

_split_field_lines = re.compile(rb"([^:]++):([^\r]*+)\r\n").findall

# Where a body's end is, if its length is no count of bytes (RFC 9112 section 6.3).
CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2
NO_BODY: Final = -3

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})  # RFC 9110 section 9.2.1
METHODS: Final = SAFE_METHODS | {b"POST", b"PUT", b"PATCH", b"DELETE"}


def imitations(names: Iterable[bytes]) -> frozenset[bytes]:
    """
    These names with "_" in the place of some or all dashes: what reads fields from variables, as CGI has them
    (RFC 3875 section 4.1.18), can't tell the one from the other.
    """
    return frozenset(
        b"".join(spelled)
        for name in names
        for spelled in product(*[(b"-", b"_") if byte == 0x2D else (bytes([byte]),) for byte in name])
        if b"_" in spelled
    )


# What some upstreams take for the method instead of the request line's, however they read an underscore.
_OVERRIDES: Final = (b"x-http-method", b"x-http-method-override", b"x-method-override")
METHOD_OVERRIDES: Final = frozenset(_OVERRIDES) | imitations(_OVERRIDES)
BODILESS: Final = frozenset({204, 304})  # statuses of replies that never have a body (RFC 9110 section 6.4.1)

# These never cross an intermediary, named by Connection or not (RFC 9110 section 7.6.1).
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
    }
)
# Fields that Connection must not name: without one of them the message says something else, or somebody else
# says it (RFC 9110 section 7.6.1).
NEVER_NOMINATED: Final = frozenset(
    {
        b"accept-encoding",
        b"authorization",
        b"cache-control",
        b"cookie",
        b"date",
        b"digest",
        b"expect",
        b"forwarded",
        b"host",
        b"max-forwards",
        b"origin",
        b"range",
        b"referer",
        b"repr-digest",
        b"signature",
        b"signature-input",
        b"via",
        b"want-digest",
        b"x-request-id",
    }
)
# Fields that always tell callers apart: they say who calls, or whom.
NEVER_IGNORED: Final = frozenset({b"authorization", b"cookie", b"host", b"proxy-authorization"})
NEVER_NOMINATED_PREFIXES: Final = (b"content-", b"gateway-", b"if-", b"x-forwarded-", b"x-real-")


def parse_field_lines(lines: bytes, start: int, end: int) -> list[tuple[bytes, bytes]]:
    """Names in lower case, and values. Only for what FIELD_LINES has matched: there a CR ends a line."""
    return [(name.lower(), value.strip()) for name, value in _split_field_lines(lines, start, end)]


def list_members(value: bytes) -> list[bytes]:
    """The members of a comma-separated list, in lower case, empty ones too (RFC 9110 section 5.6.1)."""
    return [member.strip(b" \t") for member in value.lower().split(b",")]
