"""
The content codings gzip and deflate taken off a body, within a limit on what comes out. Pure.
"""

from __future__ import annotations

import zlib

from gateway.errors import BodyTooLarge

# The codings that can be taken off, each with the window bits that tell zlib its format. RFC 9110 section
# 8.4.1: `deflate` is deflate data in the zlib format, and `x-gzip` is another name for `gzip`.
WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}

# JSON seldom shrinks to less than a twentieth. A small body may be as repetitive as it likes.
MAX_RATIO = 100
ANY_RATIO = 128 * 1024  # bytes

# What no compressor makes: blocks with nothing in them, at 0.1 ms for each KiB of these.
MOST_EMPTY = 64 * 1024  # bytes of them
STEP = 16 * 1024


class Damaged(ValueError):
    """The body is not what its Content-Encoding says."""


def inflate(body: bytes, coding: bytes, limit: int) -> bytes:
    """
    `coding`: one of WINDOW_BITS. Raises Damaged, or BodyTooLarge as soon as `limit` bytes are passed, or what
    MAX_RATIO and ANY_RATIO allow: no more than that is ever held.
    """
    try:
        return _inflate(body, WINDOW_BITS[coding], limit)
    except Damaged:
        if coding != b"deflate":
            raise
        # RFC 9110 section 8.4.1.2: some non-conformant senders leave out the zlib wrapper.
        return _inflate(body, -zlib.MAX_WBITS, limit)


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    allowed = min(limit, max(ANY_RATIO, MAX_RATIO * len(body)))
    stream = zlib.decompressobj(window_bits)
    plain: list[bytes] = []
    size = taken = 0
    while taken < len(body) and not stream.eof:
        try:
            plain.append(stream.decompress(body[taken : taken + STEP], allowed + 1 - size))
        except zlib.error as error:
            raise Damaged(str(error)) from error
        size += len(plain[-1])
        taken += STEP
        if size > allowed:
            if allowed < limit:
                raise BodyTooLarge(f"decoded, the body is more than {MAX_RATIO} times as large")
            raise BodyTooLarge(f"decoded, the body is larger than limits.max_body ({limit} bytes)")
        if taken > MOST_EMPTY + 2 * size:
            raise Damaged("the compressed body is longer than what it says")
    if not stream.eof or stream.unused_data or taken < len(body):
        raise Damaged("the compressed body is cut off, or something follows it")
    return b"".join(plain)
