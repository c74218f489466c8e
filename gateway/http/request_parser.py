"""
Requests as HTTP/1.1 writes them: bytes in, a head or a piece of body out, or a refusal raised.

Law: nothing is repaired. What two parsers could read in two ways is refused (RFC 9112 section 11.2), and what
is accepted is handed on byte for byte. Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from msgspec import Struct

from gateway.errors import (
    BadRequest,
    ExpectationFailed,
    GatewayError,
    HeadTooLarge,
    MethodNotAllowed,
    MisdirectedRequest,
    NotSupported,
    TargetTooLong,
    VersionNotSupported,
)
from gateway.http.headers import END_TO_END, Fields, text

CHUNKED: Final = -1
MAX_BLANK_LINES: Final = 8
MAX_CHUNK_LINE: Final = 1024
MAX_EXTENSIONS: Final = 16 * 1024
MAX_TRAILERS: Final = 8 * 1024

_METHOD_LENGTH: Final = 64
_BLOCK_KEPT: Final = 4096  # bytes of fields that are remembered for the next request of a connection
_NAME_LENGTH: Final = 256
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]"
_TARGET: Final = rb"[\x21\x22\x24-\x7e]"  # what is printable, but "#": a fragment is never sent

_FIELDS: Final = rb"(?:%b{1,%d}+:%b*+\r\n)*+" % (_TOKEN, _NAME_LENGTH, _TEXT)
_LINE: Final = rb"(%b{1,%d}+) (%b++) HTTP/1\.([0-9])" % (_TOKEN, _METHOD_LENGTH, _TARGET)
_match_head = re.compile(rb"%b\r\n(%b)\r\n" % (_LINE, _FIELDS)).fullmatch
_match_line = re.compile(_LINE).fullmatch
_match_fields = re.compile(_FIELDS).fullmatch
_match_name = re.compile(rb"%b+" % _TOKEN).fullmatch
_match_text = re.compile(rb"%b*" % _TEXT).fullmatch
_match_target = re.compile(rb"%b+" % _TARGET).fullmatch
# Only for what _match_head has accepted: there a CR ends a line, and the first colon ends a name.
_split_fields = re.compile(rb"([^:]++):([^\r]*+)\r\n").findall

# What can stand in no head, whatever follows: control characters, a bare CR or LF (RFC 9112 section 2.2).
_search_unfit = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)").search

# RFC 3986 section 3.2.2, without the sub-delims of reg-name: no name in use has one; a comma joins two hosts.
_match_host = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9\-._~]|%[0-9A-Fa-f]{2}){1,255})(?::([0-9]{0,5}))?"
).fullmatch
_match_absolute = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE).fullmatch
_match_length = re.compile(rb"[0-9]{1,18}").fullmatch  # below 2**63 in every implementation
_match_protocol = re.compile(rb"%b+(?:/%b+)?" % (_TOKEN, _TOKEN)).fullmatch

# The CRLF that ends a chunk's bytes is read with the next chunk's line. 15 digits stay below 2**63. The "bad
# white space" that RFC 9112 section 7.1.1 lets extensions have is refused: parsers differ over it.
_EXTENSION: Final = (
    rb";%b++(?:=(?:%b++|\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\"))?+"
    % (_TOKEN, _TOKEN)
)
_CHUNK: Final = rb"([0-9A-Fa-f]{1,15}+)((?:%b)*+)\r\n" % _EXTENSION
_CHUNK_PREFIX: Final = rb"[0-9A-Fa-f]{1,15}+(?:;%b*+)?+\r?" % _TEXT
_match_first = re.compile(_CHUNK).match
_match_next = re.compile(rb"\r\n%b" % _CHUNK).match
_prefix_of_first = re.compile(_CHUNK_PREFIX).fullmatch
_prefix_of_next = re.compile(rb"\r(?:\n(?:%b)?)?" % _CHUNK_PREFIX).fullmatch

_USUAL_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_REFUSED_METHODS: Final = frozenset({b"CONNECT", b"TRACE"})
_DECISIVE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
# Nominating one of these changes what the message says or who is saying it (RFC 9110 section 7.6.1).
_NEVER_NOMINATED: Final = END_TO_END | {
    b"accept-encoding",
    b"date",
    b"digest",
    b"max-forwards",
    b"origin",
    b"range",
    b"referer",
    b"repr-digest",
    b"signature",
    b"signature-input",
    b"want-digest",
}
_NEVER_NOMINATED_PREFIXES: Final = (b"content-", b"gateway-", b"if-", b"x-forwarded-", b"x-real-")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    max_target: int = 8 * 1024
    max_head: int = 32 * 1024
    max_headers: int = 100


class RequestHead(Struct, frozen=True):
    method: bytes
    target: bytes  # origin form or "*"
    minor: int  # of HTTP/1.x: 0 or 1, whatever higher one the client claims (RFC 9110 section 2.5)
    headers: Fields
    length: int  # of the body; CHUNKED where only its end will tell
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes | None  # the protocol offered, in lower case
    block: bytes  # the fields as they came, to tell the next that are the same by; else empty


def parse_head(data: bytes, limits: HeadLimits, last: RequestHead | None = None) -> RequestHead:
    """
    The head that `data` is, from the request line to the empty line. `last` is that of the connection's last
    request: most clients say the same fields again and again.
    """
    if len(data) > limits.max_head:
        raise _too_large(data, limits)
    line_end = data.find(b"\r\n")
    block = data[line_end + 2 :]
    if last is not None and block == last.block:
        line = _match_line(data[:line_end])
        if line is not None and len(line[2]) <= limits.max_target and line[1] in _USUAL_METHODS:
            method, target, digit = line.groups()
            # What the fields mean depends on no more of the line than this.
            if target[0] == 0x2F and (digit != b"0") == last.minor:
                return RequestHead(
                    method,
                    target,
                    last.minor,
                    last.headers,
                    last.length,
                    last.keep_alive,
                    last.expect_continue,
                    last.upgrade,
                    block,
                )
    match = _match_head(data)
    if match is None:
        raise _diagnosis(data, limits)
    method, target, digit, _ = match.groups()
    if len(target) > limits.max_target:
        raise _target_too_long(limits)
    minor = 0 if digit == b"0" else 1
    headers = [(name.lower(), value.strip()) for name, value in _split_fields(data, *match.span(4))]
    if len(headers) > limits.max_headers:
        raise HeadTooLarge(f"more than {limits.max_headers} header fields (limits.max_headers)")

    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    connection = expectation = upgrade = b""
    for name, value in headers:
        if name not in _DECISIVE:
            continue
        if name == b"host":
            if host is not None:
                raise BadRequest("Host is repeated")
            if not _is_host(value):
                raise BadRequest("Host is not a host with an optional port")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise BadRequest("Content-Length is repeated")
            length = value
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"connection":
            connection += b"," + value if connection else value
        elif name == b"expect":
            expectation += b"," + value if expectation else value
        else:
            upgrade += b"," + value if upgrade else value

    if method not in _USUAL_METHODS and method.upper() in _REFUSED_METHODS:
        raise MethodNotAllowed(f"{text(method)} is not served")
    if target[0] != 0x2F:
        target, authority = _reduced(method, target)
        block = b""  # this line has a say in the fields
        if host is None and minor == 0 and authority is not None:
            host = authority
            headers.insert(0, (b"host", authority))
        elif authority is not None and host is not None and authority.lower() != host.lower():
            raise MisdirectedRequest("the target's authority is not that of Host")
    if host is None and minor:
        raise BadRequest("Host is missing")

    size = 0
    if coding is not None:
        if length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding are both there")
        if not minor:
            raise BadRequest("Transfer-Encoding does not exist in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise _coding_refused(coding)
        size = CHUNKED
    elif length is not None:
        if _match_length(length) is None:
            raise BadRequest("Content-Length is not a number of at most 18 digits")
        size = int(length)

    keep_alive = minor == 1
    offered: bytes | None = None
    if connection:
        options = _options(connection)
        if b"close" in options:
            keep_alive = False
        # An upgrade that follows a body would switch in the middle of one: such a request stays plain HTTP.
        if upgrade and minor and not size and b"upgrade" in options:
            offered = _offered(upgrade)
    if expectation and minor:
        for member in expectation.split(b","):
            if member.strip().lower() not in (b"100-continue", b""):
                raise ExpectationFailed("an expectation other than 100-continue")
    expects = bool(expectation) and minor == 1 and size != 0
    if len(block) > _BLOCK_KEPT:
        block = b""
    return RequestHead(method, target, minor, Fields(headers), size, keep_alive, expects, offered, block)


def refuse_hopeless(data: bytes, seen: int, limits: HeadLimits) -> None:
    """Raises if nothing that may follow makes a head of `data`, of which `seen` bytes passed before."""
    if len(data) > limits.max_head:
        raise _too_large(data, limits)
    if _search_unfit(data, max(seen - 1, 0)):
        raise _diagnosis(data, limits)
    end = data.find(b"\r\n")
    if end < 0:
        space = data.find(b" ", 0, _METHOD_LENGTH + 1)
        if space < 0 and len(data) > _METHOD_LENGTH:
            raise BadRequest("the request line does not begin with a method")
        if len(data) > space + 1 + limits.max_target + len(" HTTP/1.1\r"):
            raise _target_too_long(limits)
    elif end + 2 > seen:
        error = _line_diagnosis(data[:end], limits)
        if error is not None:
            raise error


def blank_lines(data: bytes) -> int:
    """How many bytes of empty lines precede the request line, to be ignored (RFC 9112 section 2.2)."""
    end = 0
    while data.startswith(b"\r\n", end):
        end += 2
    return end


class ChunkedReader:
    """
    The chunked coding (RFC 9112 section 7.1) of one body, in pieces as they come.

    Extensions are checked and ignored; trailers are checked and dropped, never merged into the head.
    """

    __slots__ = ("_extensions", "_held", "_in_trailers", "_match", "_remaining", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._match = _match_first
        self._remaining = 0
        self._in_trailers = False
        self._extensions = 0
        self._held = b""  # an incomplete line, without the bytes of any chunk

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """What `data` has of the body, and how many of its bytes are this message's: all, until `ended`."""
        held = len(self._held)
        if held:
            data = self._held + data
            self._held = b""
        size = len(data)
        position = 0
        pieces: list[bytes] = []
        while position < size:
            if self._remaining:
                piece = data[position : position + self._remaining]
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
            elif self._in_trailers:
                position = self._read_trailers(data, position, held)
                break
            else:
                match = self._match(data, position)
                if match is None:
                    self._hold_line(data[position:])
                    position = size
                    break
                position = match.end()
                self._remaining = int(match[1], 16)
                self._in_trailers = not self._remaining
                self._match = _match_next
                self._extensions += len(match[2])
                if len(match[2]) > MAX_CHUNK_LINE or self._extensions > MAX_EXTENSIONS:
                    raise BadRequest("the chunk extensions are too large")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), position - held

    def _hold_line(self, line: bytes) -> None:
        prefix = _prefix_of_first if self._match is _match_first else _prefix_of_next
        if prefix(line) is None:
            raise BadRequest("a chunk does not begin or end as chunks do")
        if len(line) > MAX_CHUNK_LINE:
            raise BadRequest("the chunk extensions are too large")
        self._held = line

    def _read_trailers(self, data: bytes, position: int, seen: int) -> int:
        if data.startswith(b"\r\n", position):
            self.ended = True
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if (len(data) if end < 0 else end) - position > MAX_TRAILERS:
            raise HeadTooLarge("the trailer section is too large")
        if end < 0:
            if _search_unfit(data, max(seen - 1, position)):
                raise BadRequest("the trailer section is not made of header fields")
            self._held = data[position:]
            return len(data)
        if _match_fields(data, position, end + 2) is None:
            raise BadRequest("the trailer section is not made of header fields")
        self.ended = True
        return end + 4


@lru_cache(maxsize=512)
def _is_host(value: bytes) -> bool:
    match = _match_host(value)
    if match is None or int(match[2] or 0) > 65535:
        return False
    if match[1] is None:
        return True
    try:
        ipaddress.IPv6Address(match[1].decode("ascii"))
    except ipaddress.AddressValueError:
        return False
    return True


def _reduced(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """A target that is not in origin form as one that is, and the authority that it named."""
    if target == b"*":
        if method != b"OPTIONS":
            raise BadRequest("the target * is for OPTIONS alone")
        return target, None
    match = _match_absolute(target)
    if match is None:
        raise BadRequest("the target does not start with /")
    authority, rest = match.groups()
    if not _is_host(authority):
        raise BadRequest("the target's authority is not a host with an optional port")
    if rest.startswith(b"/"):
        return rest, authority
    if not rest and method == b"OPTIONS":
        return b"*", authority  # RFC 9112 section 3.2.4
    return b"/" + rest, authority


@lru_cache(maxsize=128)
def _options(connection: bytes) -> frozenset[bytes]:
    options = frozenset(option.strip(b" \t").lower() for option in connection.split(b","))
    for option in options:
        if option in _NEVER_NOMINATED or option.startswith(_NEVER_NOMINATED_PREFIXES):
            raise BadRequest(f"Connection names {text(option, 64)}, which is not of this connection alone")
    return options


def _offered(upgrade: bytes) -> bytes | None:
    for member in upgrade.split(b","):
        name = member.strip(b" \t").lower()
        # HTTP/2 and TLS would bring in a second protocol stack that nobody here speaks.
        if _match_protocol(name) and not name.startswith((b"h2c", b"http/", b"tls/")):
            return name
    return None


def _coding_refused(coding: bytes) -> GatewayError:
    *others, last = [member.strip(b" \t").lower() for member in coding.split(b",")]
    if last == b"chunked" and b"chunked" not in others and all(_match_name(other) for other in others):
        return NotSupported("a transfer coding other than chunked")
    return BadRequest("Transfer-Encoding is not chunked")


def _target_too_long(limits: HeadLimits) -> TargetTooLong:
    return TargetTooLong(f"the target is longer than {limits.max_target} bytes (limits.max_target)")


def _too_large(data: bytes, limits: HeadLimits) -> GatewayError:
    line = data[: data.find(b"\r\n")] if b"\r\n" in data else data
    if len(line) > line.find(b" ") + 1 + limits.max_target + len(" HTTP/1.1"):
        return _target_too_long(limits)
    return HeadTooLarge(f"the head is larger than {limits.max_head} bytes (limits.max_head)")


def _line_diagnosis(line: bytes, limits: HeadLimits) -> GatewayError | None:
    parts = line.split(b" ")
    if len(parts) > 1 and len(parts[1]) > limits.max_target:
        return _target_too_long(limits)
    if _match_line(line) is not None:
        return None
    if len(parts) != 3:
        return BadRequest("the request line is not a method, a target and a version")
    method, target, version = parts
    if re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version) is None:
        return BadRequest("the request line does not end with an HTTP version")
    if version[5:6] != b"1":
        return VersionNotSupported(f"{text(version)} is not spoken here")
    if _match_name(method) is None:
        return BadRequest("the method is not a token")
    if _match_target(target) is None:
        return BadRequest("the target has a character that must be percent-encoded")
    return BadRequest("the method is too long")


def _diagnosis(data: bytes, limits: HeadLimits) -> GatewayError:
    """What is wrong with a head that was not matched; names fields, never quotes a value."""
    line, _, rest = data.partition(b"\r\n")
    error = _line_diagnosis(line, limits)
    if error is not None:
        return error
    for number, field in enumerate(rest.split(b"\r\n")):
        name, colon, value = field.partition(b":")
        if field.startswith((b" ", b"\t")):
            where = "before the first field" if number == 0 else "at the start of a line: obs-fold"
            return BadRequest(f"white space {where}")
        if b"\r" in field or b"\n" in field:
            return BadRequest("a bare CR or LF in the head")
        if field and not colon:
            return BadRequest("a line of the head has no colon")
        if field and name.endswith((b" ", b"\t")):
            return BadRequest("white space before a colon")
        if len(name) > _NAME_LENGTH:
            return HeadTooLarge("a field name is too long")
        if field and _match_name(name) is None:
            return BadRequest("a field name is not a token")
        if _match_text(value) is None:
            return BadRequest(f"a control character in the field {text(name, 64)}")
    return BadRequest("the head is not valid")
