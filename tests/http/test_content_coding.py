"""gzip and deflate taken off a body: whole or not at all, and never more than the limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge
from gateway.http.content_coding import ANY_RATIO, MAX_RATIO, WINDOW_BITS, Damaged, inflate

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LIMIT = 2**16
PLAIN = b'{"attributes": {"supervisorNote": "test"}}'


def raw_deflate(plain: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(plain) + stream.flush()


ZIPPED = gzip.compress(PLAIN, mtime=0)
FORMATS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"gzip", gzip.compress),
    (b"x-gzip", gzip.compress),
    (b"deflate", zlib.compress),
    (b"deflate", raw_deflate),
]


@patient
@given(st.binary(max_size=200), st.sampled_from(FORMATS))
def test_what_was_compressed_comes_out_as_it_was(
    plain: bytes, how: tuple[bytes, Callable[[bytes], bytes]]
) -> None:
    coding, compressed = how

    assert inflate(compressed(plain), coding, LIMIT) == plain


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", PLAIN),
        (b"gzip", b""),
        (b"gzip", ZIPPED[:-1]),
        (b"gzip", ZIPPED[:12]),
        (b"gzip", ZIPPED + b"\0"),
        (b"gzip", ZIPPED * 2),
        (b"gzip", ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:]),
        (b"gzip", zlib.compress(PLAIN)),
        (b"gzip", raw_deflate(PLAIN)),
        (b"x-gzip", ZIPPED[:-1]),
        (b"deflate", ZIPPED),
        (b"deflate", b""),
        (b"deflate", zlib.compress(PLAIN)[:-1]),
        (b"deflate", zlib.compress(PLAIN) + b"x"),
        (b"deflate", raw_deflate(PLAIN)[:-1]),
        (b"deflate", raw_deflate(PLAIN) + b"x"),
        (b"deflate", PLAIN),
    ],
)
def test_what_is_cut_off_followed_by_something_or_of_another_format_is_damaged(
    coding: bytes, body: bytes
) -> None:
    with pytest.raises(Damaged):
        inflate(body, coding, LIMIT)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"compress", b"identity", b"gzip;q=1", b"GZIP", b""])
def test_another_coding_is_not_known(coding: bytes) -> None:
    assert coding not in WINDOW_BITS
    with pytest.raises(KeyError):
        inflate(ZIPPED, coding, LIMIT)


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize(("coding", "compressed"), FORMATS)
def test_as_much_as_the_limit_comes_out_and_not_a_byte_more(
    coding: bytes, compressed: Callable[[bytes], bytes], size: int
) -> None:
    body = compressed(bytes(size))

    if size > LIMIT:
        with pytest.raises(BodyTooLarge, match=r"limits\.max_body"):
            inflate(body, coding, LIMIT)
    else:
        assert inflate(body, coding, LIMIT) == bytes(size)


@pytest.mark.parametrize("window_bits", [16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_a_bomb_costs_no_more_memory_than_the_limit(window_bits: int) -> None:
    stream = zlib.compressobj(wbits=window_bits)
    bomb = b"".join(stream.compress(bytes(2**20)) for _ in range(64)) + stream.flush()

    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            inflate(bomb, b"gzip" if window_bits > zlib.MAX_WBITS else b"deflate", LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT + len(bomb)


@patient
@given(st.binary(max_size=64), st.sampled_from([b"gzip", b"x-gzip", b"deflate"]))
def test_inflating_anything_gives_bytes_within_the_limit_or_says_that_it_is_damaged(
    body: bytes, coding: bytes
) -> None:
    try:
        plain = inflate(body, coding, 100)
    except (Damaged, BodyTooLarge):
        return
    assert len(plain) <= 100


def test_a_small_body_that_grows_without_measure_is_too_large() -> None:
    packed = zlib.compress(b" " * 2**20)
    assert len(packed) * MAX_RATIO < 2**20

    with pytest.raises(BodyTooLarge, match="100 times"):
        inflate(packed, b"deflate", 2**21)
    assert inflate(zlib.compress(b" " * ANY_RATIO), b"deflate", 2**21) == b" " * ANY_RATIO


def test_a_compressed_body_with_next_to_nothing_in_it_is_not_read_to_its_end() -> None:
    coding, stream = b"gzip", zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    start = stream.compress(PLAIN) + stream.flush(zlib.Z_FULL_FLUSH)
    empty = b"\x00\x00\x00\xff\xff"  # a stored block of no bytes
    end = stream.flush()
    assert inflate(start + 1_000 * empty + end, coding, 2**20) == PLAIN
    with pytest.raises(Damaged, match="longer than what it says"):
        inflate(start + 200_000 * empty + end, coding, 2**20)
