"""
A request's head: the bytes of its lines in, a RequestHead out, or a refusal raised. Pure.

Law: nothing is repaired. What two parsers could read in two ways is refused (RFC 9112 section 11.2), and what
is accepted is handed on byte for byte.
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
from gateway.http.grammar import (
    CHUNKED,
    FIELD_LINES,
    MAX_NAME,
    NEVER_NOMINATED,
    NEVER_NOMINATED_PREFIXES,
    TCHAR,
    list_members,
    match_field_text,
    match_length,
    match_token,
    parse_field_lines,
    search_unfit,
)
from gateway.http.head_shapes import MAX_BLOCK, HeadShapes, Key
from gateway.http.headers import Fields, Header, text
from gateway.http.slots import FIXED, SLOTS, Slot, Values

MAX_BLANK_LINES: Final = 8

LINES_KEPT: Final = 8192  # request lines that are read once: the same participants are called for again
LINE_KEPT: Final = 256  # bytes of such a line
_MAX_METHOD: Final = 64
_TARGET: Final = rb"[\x21\x22\x24-\x7e]"  # what is printable, but "#": a fragment is never sent

_LINE: Final = rb"(%b{1,%d}+) (%b++) HTTP/1\.([0-9])" % (TCHAR, _MAX_METHOD, _TARGET)
_match_head = re.compile(rb"%b\r\n(%b)\r\n" % (_LINE, FIELD_LINES)).fullmatch
_match_line = re.compile(_LINE).fullmatch
_match_target = re.compile(rb"%b+" % _TARGET).fullmatch
# RFC 3986 section 3.2.2, without the sub-delims of reg-name: no name in use has one; a comma joins two hosts.
_match_host = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9\-._~]|%[0-9A-Fa-f]{2}){1,255})(?::([0-9]{0,5}))?"
).fullmatch
_match_absolute = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE).fullmatch
_match_protocol = re.compile(rb"%b+(?:/%b+)?" % (TCHAR, TCHAR)).fullmatch

_USUAL_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_REFUSED_METHODS: Final = frozenset({b"CONNECT", b"TRACE"})
_DECISIVE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Bytes, and the number of field lines."""

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
    values: Values = ()  # for the slots in `headers`
    block: bytes | None = None  # the field lines as they came, where the next head with these means the same


class _Decisive(Struct):
    """The fields that decide how the message is read; of a list field all lines, joined by commas."""

    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    connection: bytes = b""
    expectation: bytes = b""
    upgrade: bytes = b""


def parse_head(
    data: bytes, limits: HeadLimits, shapes: HeadShapes | None = None, last: RequestHead | None = None
) -> RequestHead:
    """
    The head that `data` is, from the request line to the empty line. With `shapes` its fields may have slots,
    for the `values` that it has. `last` is the head before it on its connection.
    """
    size = len(data)
    if size > limits.max_head:
        raise _too_large(data, limits)
    line_end = data.find(b"\r\n")
    if shapes is None or size - line_end > MAX_BLOCK:
        return _parsed(data, limits)
    line = _kept_line(data[:line_end]) if line_end <= LINE_KEPT else _line(data[:line_end])
    if line is None or len(line[1]) > limits.max_target:
        return _parsed(data, limits)
    method, target, minor = line
    block = data[line_end + 2 : -4]
    if last is not None and block == last.block and minor == last.minor:
        return RequestHead(
            method, target, minor, last.headers, last.length, last.keep_alive, False, None, last.values, block
        )
    split = shapes.split(block, minor)
    if split is None:
        return _parsed(data, limits)
    key, values = split
    shape = shapes.get(key)
    if shape is None:
        head = _parsed(data, limits)
        if not shapes.is_worth_it(key):
            return head
        shape = _shape(head, key)
        if shape is None:
            return head
        shapes.remember(key, shape)
    length = shape.length
    if isinstance(length, Slot):
        value = values[length.number]
        if match_length(value) is None:
            return _parsed(data, limits)
        length = int(value)
    return RequestHead(
        method, target, minor, shape.headers, length, shape.keep_alive, False, None, values, block
    )


def _line(line: bytes) -> tuple[bytes, bytes, int] | None:
    """
    Method, target and minor version of a request line; None where it is none, or has a say in what the fields
    mean.
    """
    match = _match_line(line)
    if match is None:
        return None
    method, target, digit = match.groups()
    if target[0] != 0x2F or method not in _USUAL_METHODS:
        return None
    return method, target, 0 if digit == b"0" else 1


_kept_line = lru_cache(LINES_KEPT)(_line)


class _Shape(Struct, frozen=True):
    """What the heads of one shape have in common; `length` is the body's, or its slot."""

    headers: Fields
    length: int | Slot
    keep_alive: bool


def _shape(head: RequestHead, key: Key) -> _Shape | None:
    """None for a head whose length has a say in more than how long the body is."""
    if head.expect_continue or any(name in (b"expect", b"upgrade") for name, _ in head.headers):
        return None
    slots = iter(SLOTS)
    headers = Fields([(name, value if name in FIXED else next(slots)) for name, value in head.headers])
    length = next((value for name, value in headers if name == b"content-length"), None)
    return _Shape(headers, length if isinstance(length, Slot) else head.length, head.keep_alive)


def _parsed(data: bytes, limits: HeadLimits) -> RequestHead:
    match = _match_head(data)
    if match is None:
        raise _diagnosis(data, limits)
    method, target, digit, _ = match.groups()
    if len(target) > limits.max_target:
        raise _target_too_long(limits)
    headers = parse_field_lines(data, *match.span(4))
    if len(headers) > limits.max_headers:
        raise HeadTooLarge(f"more than {limits.max_headers} header fields (limits.max_headers)")
    return _understood(method, target, 0 if digit == b"0" else 1, headers)


def _understood(method: bytes, target: bytes, minor: int, headers: list[Header]) -> RequestHead:
    """What a head means: where the request goes, how long it is, and what becomes of its connection."""
    decisive = _decisive(headers)
    if method not in _USUAL_METHODS and method.upper() in _REFUSED_METHODS:
        raise MethodNotAllowed(f"{text(method)} is not served")
    if target[0] != 0x2F:
        target, authority = _in_origin_form(method, target)
        _agree(decisive, authority, minor, headers)
    if decisive.host is None and minor:
        raise BadRequest("Host is missing")
    length = _body_length(decisive, minor)
    keep_alive = minor == 1
    offered: bytes | None = None
    if decisive.connection:
        options = _options(decisive.connection)
        keep_alive = keep_alive and b"close" not in options
        # An upgrade that follows a body would switch in the middle of one: such a request stays plain HTTP.
        if decisive.upgrade and minor and not length and b"upgrade" in options:
            offered = _offered(decisive.upgrade)
    expects = False
    if decisive.expectation and minor:
        for member in decisive.expectation.split(b","):
            if member.strip().lower() not in (b"100-continue", b""):
                raise ExpectationFailed("an expectation other than 100-continue")
        expects = length != 0
    return RequestHead(method, target, minor, Fields(headers), length, keep_alive, expects, offered)


def _decisive(headers: list[Header]) -> _Decisive:
    found = _Decisive()
    for name, value in headers:
        if name not in _DECISIVE:
            continue
        if name == b"host":
            if found.host is not None:
                raise BadRequest("Host is repeated")
            if not _is_host(value):
                raise BadRequest("Host is not a host with an optional port")
            found.host = value
        elif name == b"content-length":
            if found.length is not None:
                raise BadRequest("Content-Length is repeated")
            found.length = value
        elif name == b"transfer-encoding":
            found.coding = value if found.coding is None else found.coding + b"," + value
        elif name == b"connection":
            found.connection += b"," + value if found.connection else value
        elif name == b"expect":
            found.expectation += b"," + value if found.expectation else value
        else:
            found.upgrade += b"," + value if found.upgrade else value
    return found


def _agree(decisive: _Decisive, authority: bytes | None, minor: int, headers: list[Header]) -> None:
    """A target that names an authority takes the place of a missing Host, and must not contradict one."""
    if authority is None:
        return
    if decisive.host is None and minor == 0:
        decisive.host = authority
        headers.insert(0, (b"host", authority))
    elif decisive.host is not None and authority.lower() != decisive.host.lower():
        raise MisdirectedRequest("the target's authority is not that of Host")


def _body_length(decisive: _Decisive, minor: int) -> int:
    """RFC 9112 section 6.3, without what it lets a recipient repair."""
    coding, length = decisive.coding, decisive.length
    if coding is not None:
        if length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding are both there")
        if not minor:
            raise BadRequest("Transfer-Encoding does not exist in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise _coding_refused(coding)
        return CHUNKED
    if length is None:
        return 0
    if match_length(length) is None:
        raise BadRequest("Content-Length is not a number of at most 18 digits")
    return int(length)


def refuse_hopeless(data: bytes, seen: int, limits: HeadLimits) -> None:
    """Raises if nothing that may follow makes a head of `data`, of which `seen` bytes passed before."""
    if len(data) > limits.max_head:
        raise _too_large(data, limits)
    if search_unfit(data, max(seen - 1, 0)):
        raise _diagnosis(data, limits)
    end = data.find(b"\r\n")
    if end < 0:
        space = data.find(b" ", 0, _MAX_METHOD + 1)
        if space < 0 and len(data) > _MAX_METHOD:
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


def _in_origin_form(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """A target of another form (RFC 9112 section 3.2) in origin form, and the authority that it named."""
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
    options = frozenset(list_members(connection))
    for option in options:
        if option in NEVER_NOMINATED or option.startswith(NEVER_NOMINATED_PREFIXES):
            raise BadRequest(f"Connection names {text(option, 64)}, which is not of this connection alone")
    return options


def _offered(upgrade: bytes) -> bytes | None:
    for name in list_members(upgrade):
        # HTTP/2 and TLS would bring in a second protocol stack that nobody here speaks.
        if _match_protocol(name) and not name.startswith((b"h2c", b"http/", b"tls/")):
            return name
    return None


def _coding_refused(coding: bytes) -> GatewayError:
    *others, last = list_members(coding)
    if last == b"chunked" and b"chunked" not in others and all(match_token(other) for other in others):
        return NotSupported("a transfer coding other than chunked")
    return BadRequest("Transfer-Encoding is not chunked")


def _target_too_long(limits: HeadLimits) -> TargetTooLong:
    return TargetTooLong(f"the target is longer than {limits.max_target} bytes (limits.max_target)")


def _too_large(data: bytes, limits: HeadLimits) -> GatewayError:
    if data.find(b" ", 0, _MAX_METHOD + 1) < 0:
        return BadRequest("the request line does not begin with a method")
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
    if match_token(method) is None:
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
            return BadRequest(f"white space {where}")  # RFC 9112 sections 2.2 and 5.2
        if b"\r" in field or b"\n" in field:
            return BadRequest("a bare CR or LF in the head")
        if field and not colon:
            return BadRequest("a line of the head has no colon")
        if field and name.endswith((b" ", b"\t")):
            return BadRequest("white space before a colon")  # RFC 9112 section 5.1
        if len(name) > MAX_NAME:
            return HeadTooLarge("a field name is too long")
        if field and match_token(name) is None:
            return BadRequest("a field name is not a token")
        if match_field_text(value) is None:
            return BadRequest(f"a control character in the field {text(name, 64)}")
    return BadRequest("the head is not valid")
