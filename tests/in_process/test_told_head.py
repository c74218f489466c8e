"""What somebody else has read of a request is read once more, and nothing in it can become another part."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, GatewayError, HeadTooLarge, MisdirectedRequest, TargetTooLong
from gateway.http.head_shapes import HeadShapes
from gateway.http.headers import Header
from gateway.http.request_parser import HeadLimits
from gateway.http.slots import filled
from gateway.in_process.told_head import target_of, told_head

HOST = (b"host", b"h")


def head(
    *fields: Header, method: bytes = b"GET", target: bytes = b"/x", version: str = "1.1"
) -> list[Header]:
    read = told_head(method, target, [HOST, *fields], version, HeadLimits(), HeadShapes())
    return list(filled(read.headers, read.values))


def test_fields_are_kept_in_their_order_with_their_repeats() -> None:
    fields = [(b"x", b"1"), (b"cookie", b"a=1"), (b"x", b"2: \xe9"), (b"y", b"")]
    assert head(*fields) == [HOST, *fields]


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"1\r\nauthorization: Bearer two"),
        (b"x", b"1\r\n\r\nGET /y HTTP/1.1"),
        (b"x", b"1\n"),
        (b"x", b"1\0"),
        (b"x\r\ny", b"1"),
        (b"x: y", b"1"),
        (b"x ", b"1"),
        (b"", b"1"),
        (b":path", b"/y"),
        HOST,
        (b"transfer-encoding", b"gzip"),
        (b"connection", b"authorization"),
        (b"content-length", b"+1"),
    ],
)
def test_what_is_refused_on_the_wire_is_refused_here(field: Header) -> None:
    with pytest.raises(BadRequest):
        head(field)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/x HTTP/1.1\r\nauthorization: Bearer two\r\nx:"),
        (b"GET", b"/x y"),
        (b"GET", b"/x#y"),
        (b"GET", b"x"),
        (b"GET", b""),
        (b"GET /y HTTP/1.1\r\nx:", b"/x"),
        (b"G T", b"/x"),
    ],
)
def test_neither_method_nor_target_can_begin_another_line(method: bytes, target: bytes) -> None:
    with pytest.raises(BadRequest):
        head(method=method, target=target)


def test_a_length_and_chunks_are_never_both_there() -> None:
    with pytest.raises(BadRequest):
        head((b"content-length", b"1"), (b"transfer-encoding", b"chunked"))


def test_the_limits_of_heads_are_those_of_the_gateway() -> None:
    with pytest.raises(HeadTooLarge):
        head((b"x", b"a" * 40_000))
    with pytest.raises(TargetTooLong):
        head(target=b"/" * 9_000)
    with pytest.raises(MisdirectedRequest):
        head(target=b"http://elsewhere.example/x")


@pytest.mark.parametrize(
    ("raw_path", "query", "path", "target"),
    [(b"/a%2Fb", b"", "/a/b", b"/a%2Fb"), (b"/a", b"b=%20", "/a", b"/a?b=%20")],
)
def test_the_target_is_the_path_as_it_was_sent(
    raw_path: bytes, query: bytes, path: str, target: bytes
) -> None:
    assert target_of(raw_path, query, path) == target


@pytest.mark.parametrize(
    ("raw_path", "path"), [(None, "/a/b"), (b"/a/b", "/b"), (b"/a%2Fb", "/a%2Fb"), (b"/a?b", "/a")]
)
def test_a_target_that_is_not_told_or_told_in_two_ways_is_refused(raw_path: bytes | None, path: str) -> None:
    with pytest.raises(GatewayError):
        target_of(raw_path, b"", path)
