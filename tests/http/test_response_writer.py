"""Responses as bytes: how each is framed, what is refused before a byte is given out, where it may end."""

from __future__ import annotations

import pytest

from gateway.http.headers import Fields, Header
from gateway.http.response_writer import ResponseWriter, switching

DATE = b"date: Sun, 22 Nov 2026 12:00:00 GMT\r\n"
LENGTH_5 = [(b"content-length", b"5")]


def date() -> bytes:
    return b"Sun, 22 Nov 2026 12:00:00 GMT"


def begun(
    status: int = 200,
    headers: list[Header] | None = None,
    extra_headers: list[Header] | None = None,
    method: bytes = b"GET",
    minor: int = 1,
) -> ResponseWriter:
    return ResponseWriter(status, headers or [], extra_headers or [], method, minor, date)


@pytest.mark.parametrize(
    ("status", "headers", "method", "minor", "fields", "body"),
    [
        (200, LENGTH_5, b"GET", 1, b"content-length: 5\r\n" + DATE, b"hello"),
        (200, LENGTH_5, b"GET", 0, b"content-length: 5\r\n" + DATE, b"hello"),
        (200, [], b"GET", 1, DATE + b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        (200, [(b"transfer-encoding", b"chunked")], b"GET", 1, DATE + b"transfer-encoding: chunked\r\n",
         b"5\r\nhello\r\n0\r\n\r\n"),
        (200, [], b"GET", 0, DATE, b"hello"),
        (200, LENGTH_5, b"HEAD", 1, b"content-length: 5\r\n" + DATE, b""),
        (200, [], b"HEAD", 1, DATE, b""),
        (204, LENGTH_5, b"GET", 1, DATE, b""),
        (304, LENGTH_5, b"GET", 1, DATE, b""),
        (304, [], b"GET", 0, DATE, b""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("remembered", [False, True])
def test_a_body_is_framed_as_head_and_request_have_it(
    status: int,
    headers: list[Header],
    method: bytes,
    minor: int,
    fields: bytes,
    body: bytes,
    remembered: bool,
) -> None:
    for _ in range(2):
        writer = begun(status, Fields(headers) if remembered else headers, [], method, minor)
        head, separator, rest = writer.write(b"hello", False, False).partition(b"\r\n\r\n")
        assert head.partition(b"\r\n")[2] + b"\r\n" == fields
        assert (separator, rest) == (b"\r\n\r\n", body)
        assert writer.complete
        assert writer.ends_by_close is (body == b"hello" and b"length" not in fields)


def test_the_head_goes_out_with_the_first_bytes_of_the_body_or_alone() -> None:
    writer = begun(headers=LENGTH_5)
    assert writer.write(b"he", True, False).endswith(b"\r\n\r\nhe")
    assert writer.head is None
    assert writer.write(b"llo", False, False) == b"llo"
    writer = begun(headers=LENGTH_5)
    assert writer.write_head(False).endswith(b"GMT\r\n\r\n")
    assert writer.write(b"hello", False, False) == b"hello"


@pytest.mark.parametrize(
    ("close", "end"), [(False, b"GMT\r\n\r\n"), (True, b"GMT\r\nconnection: close\r\n\r\n")]
)
def test_a_head_says_that_the_connection_closes(close: bool, end: bytes) -> None:
    assert begun(204).write_head(close).endswith(end)
    assert begun(204).write(b"", False, close).endswith(end)


@pytest.mark.parametrize(
    ("value", "closes", "kept"),
    [(b"close", True, False), (b"Close", True, False), (b"x, close", True, True), (b"upgrade", False, True)],
)
def test_what_the_fields_say_of_the_connection_is_told(value: bytes, closes: bool, kept: bool) -> None:
    writer = begun(204, [(b"connection", value)])
    assert writer.closes is closes
    assert (b"connection: " + value in writer.write_head(False)) is kept


@pytest.mark.parametrize(
    ("pieces", "more"),
    [([b"four"], False), ([b"longer"], True), ([b"abc", b"def"], True), ([b"abc", b"d"], False)],
)
def test_a_body_that_is_not_as_long_as_its_length_is_an_error(pieces: list[bytes], more: bool) -> None:
    writer = begun(headers=LENGTH_5)
    for piece in pieces[:-1]:
        writer.write(piece, True, False)
    with pytest.raises(RuntimeError, match="Content-Length"):
        writer.write(pieces[-1], more, False)
    assert not writer.complete


def test_nothing_is_written_after_the_end() -> None:
    writer = begun()
    writer.write(b"", False, False)
    with pytest.raises(RuntimeError, match="complete"):
        writer.write(b"x", True, False)


def test_an_empty_piece_does_not_end_a_chunked_body() -> None:
    writer = begun()
    writer.write(b"a", True, False)
    assert writer.write(b"", True, False) == b""
    assert writer.write(b"", False, False) == b"0\r\n\r\n"


@pytest.mark.parametrize("status", [0, 100, 101, 199, 1000, -1])
def test_what_is_no_final_status_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        begun(status)


@pytest.mark.parametrize(
    "field", [(b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"\0"), (b"x: y", b"a"), (b"", b"a")]
)
def test_a_field_that_would_add_a_line_is_refused_wherever_it_stands(field: Header) -> None:
    with pytest.raises(ValueError, match=r"control|token"):
        begun(200, [field])
    if field[1] != b"a":  # the names of extra fields are the gateway's own
        with pytest.raises(ValueError, match="control"):
            begun(200, [], [field])
    with pytest.raises(ValueError, match=r"control|token"):
        switching([field], b"x")


def test_extra_fields_stand_behind_the_others_and_a_date_is_added_only_where_there_is_none() -> None:
    head = begun(404, [(b"a", b"1"), (b"Date", b"then")], [(b"b", b"2"), (b"c", b"3")], b"HEAD").write_head(
        False
    )
    assert head == b"HTTP/1.1 404 Not Found\r\na: 1\r\nDate: then\r\nb: 2\r\nc: 3\r\n\r\n"


def test_a_101_names_the_protocol_unless_its_fields_do() -> None:
    assert switching([(b"x", b"y")], b"raw") == (
        b"HTTP/1.1 101 Switching Protocols\r\nx: y\r\nupgrade: raw\r\nconnection: upgrade\r\n\r\n"
    )
    said = [(b"connection", b"Upgrade"), (b"upgrade", b"Raw")]
    assert switching(said, b"raw").endswith(b"\r\nconnection: Upgrade\r\nupgrade: Raw\r\n\r\n")
