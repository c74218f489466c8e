"""The chunked coding: what is accepted wherever it is cut, what is refused, and what is bounded."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.chunked import MAX_CHUNK_LINE, MAX_TRAILERS, ChunkedDecoder, InvalidChunk, TrailersTooLarge
from tests.support.chunks import read_chunked


class TestChunked:
    GOOD: tuple[tuple[bytes, bytes], ...] = (
        (b"0\r\n\r\n", b""),
        (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789"),
        (b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r"),
        (b"5;a\r\nhello\r\n0;b=c\r\n\r\n", b"hello"),
        (b'5;a="q\\"u o;te\xff";b\r\nhello\r\n0\r\n\r\n', b"hello"),
        (b"1\r\nx\r\n0\r\nTrailer: y\r\nZ: \xe9\r\n\r\n", b"x"),
    )

    @pytest.mark.parametrize(("data", "body"), GOOD)
    def test_a_body_is_the_same_wherever_it_is_cut(self, data: bytes, body: bytes) -> None:
        follows = b"GET / HTTP/1.1\r\n"
        whole = data + follows
        for first in range(1, len(whole)):
            got, rest = read_chunked(whole, first)
            assert got == body
            assert follows.endswith(rest)
            for second in range(first, len(whole)):
                assert read_chunked(whole, first, second)[0] == body
        assert read_chunked(whole, *range(1, len(whole)))[0] == body
        assert read_chunked(whole) == (body, follows)

    @pytest.mark.parametrize(
        "data",
        [
            b"0x5\r\nhello", b"+5\r\nhello", b"-5\r\nhello", b"5_0\r\nhello", b" 5\r\nhello",
            b"5 \r\nhello", b"5\t\r\n",
            b"5 ;a\r\n", b"5; a\r\n", b"5;a =b\r\n", b"5;a= b\r\n", b"5;a \r\n",
            b"\r\n5\r\nhello", b";a\r\n", b"g\r\n", b"5\nhello", b"5\r\rhello", b"5\rhello",
            b"5\r\nhellox\r\n",
            b"5\r\nhello0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhello\r\n\r\n0\r\n\r\n",
            b"5;a\x00\r\n", b"5;a\rb\r\n", b"5;a\nb\r\n", b"5;\x7f\r\n", b"5;\r\n", b"5;a=\r\n",
            b'5;a="x\r\n', b"5,a\r\n",
            b"5;a b\r\n", b'5;a="\\\r\n', b"5;=b\r\n", "\u0665\r\nhello".encode(), b"1" * 16 + b"\r\n",
            b"\r\n",
            b"0\r\nX\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: y\n\r\n",
            b"0\r\nX: \0\r\n\r\n",
            b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\n\n", b"0\n\r\n", b"0\r\n\rX",
        ],
    )  # fmt: skip
    def test_what_is_no_chunk_is_refused_wherever_it_is_cut(self, data: bytes) -> None:
        data += b"\r\n\r\n"
        for cuts in ((), *((cut,) for cut in range(1, len(data))), tuple(range(1, len(data)))):
            with pytest.raises(InvalidChunk):
                read_chunked(data, *cuts)

    def test_a_size_that_overflows_elsewhere_is_refused_and_a_huge_one_is_only_waited_for(self) -> None:
        for size in (b"8" + b"0" * 15, b"1" + b"0" * 16, b"f" * 30, b"0" * 16 + b"5"):
            with pytest.raises(InvalidChunk):
                ChunkedDecoder().feed(size + b"\r\nx")
        decoder = ChunkedDecoder()
        assert decoder.feed(b"f" * 15 + b"\r\nx") == (b"x", 18)
        assert not decoder.ended

    def test_extensions_are_bounded_in_a_line_and_in_a_body(self) -> None:
        for piece in (
            b"1;" + b"a" * (MAX_CHUNK_LINE + 8),
            b"1;" + b"a" * (MAX_CHUNK_LINE + 8) + b"\r\nx\r\n",
        ):
            with pytest.raises(InvalidChunk, match="extensions"):
                ChunkedDecoder().feed(piece)
        decoder = ChunkedDecoder()
        with pytest.raises(InvalidChunk, match="extensions"):  # noqa: PT012
            for _ in range(20):
                decoder.feed(b"1;" + b"a" * 1000 + b"\r\nx\r\n")

    def test_a13_trailers_are_bounded_whether_they_end_or_not(self) -> None:
        for end in (b"", b"\r\n\r\n"):
            with pytest.raises(TrailersTooLarge):
                ChunkedDecoder().feed(b"0\r\nX: " + b"a" * MAX_TRAILERS + end)
        decoder = ChunkedDecoder()
        with pytest.raises(TrailersTooLarge):  # noqa: PT012
            decoder.feed(b"0\r\n")
            for _ in range(MAX_TRAILERS):
                decoder.feed(b"X: a\r\n")

    def test_a_reply_may_have_more_extensions_and_trailers_than_a_request(self) -> None:
        decoder = ChunkedDecoder(max_extensions=inf, max_trailers=65_536)
        body = b""
        for _ in range(100):
            body += decoder.feed(b"1;" + b"a" * 1000 + b"\r\nx\r\n")[0]
        decoder.feed(b"0\r\n" + b"X: a\r\n" * 9000 + b"\r\n")

        assert decoder.ended
        assert body == b"x" * 100
        with pytest.raises(TrailersTooLarge):
            ChunkedDecoder(max_trailers=65_536).feed(b"0\r\nX: " + b"a" * 65_536)

    def test_a13_trailers_are_dropped(self) -> None:
        data = b"1\r\nx\r\n0\r\nAuthorization: Bearer evil\r\nHost: evil\r\n\r\nrest"
        assert read_chunked(data) == (b"x", b"rest")

    def test_a_large_chunk_is_not_copied_byte_by_byte(self) -> None:
        block = b"x" * (1 << 20)
        decoder = ChunkedDecoder()
        decoder.feed(b"%x\r\n" % (len(block) * 3))
        assert decoder.feed(block)[0] is block

    @settings(max_examples=200, deadline=None)
    @given(
        chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
        sizes=st.lists(st.integers(1, 20), max_size=40),
        follows=st.binary(max_size=10),
    )
    def test_what_was_chunked_comes_out_again(
        self, chunks: list[bytes], sizes: list[int], follows: bytes
    ) -> None:
        data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        cuts, at = [], 0
        for size in sizes:
            at += size
            if at < len(data):
                cuts.append(at)
        body, rest = read_chunked(data + follows, *cuts)
        assert body == b"".join(chunks)
        assert follows.endswith(rest)
