"""A chunked body read to its end, however it is cut."""

from __future__ import annotations

from gateway.http.chunked import ChunkedDecoder


def read_chunked(data: bytes, *cuts: int) -> tuple[bytes, bytes]:
    """The body and what follows it, the data coming in pieces."""
    decoder = ChunkedDecoder()
    body = b""
    ends = [*cuts, len(data)]
    start = 0
    for end in ends:
        piece, used = decoder.feed(data[start:end])
        body += piece
        if decoder.ended:
            return body, data[start + used :]
        assert used == end - start
        start = end
    raise EOFError
