"""Bodies of up to 1 MiB that cost a reader the most, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

SIZE = 2**20


def nasty_objects() -> Iterator[tuple[str, bytes]]:
    """JSON objects, each with what it is made of."""
    for one in ("{}", "[]", "0", "1e4", '""', '{"":{}}', "[" * 900 + "]" * 900, "1.2345678901234567e300"):
        inside = ",".join([one] * (SIZE // (len(one) + 1) - 8))
        yield f"{one[:24]} again and again", f'{{"a":[{inside}]}}'.encode()
    for one in (r"\n", r"\ud83d\ude00", "9", ",", "["):
        yield f"a text of {one}", f'{{"a":"{one * (SIZE // len(one) - 8)}"}}'.encode()
    members = ",".join(f'"{number:x}":0' for number in range(SIZE // 9))
    yield "members", f"{{{members}}}".encode()
    yield "digits", b'{"a":%b}' % (b"9" * (SIZE - 8))
    yield "never closed", b'{"a":' * (SIZE // 5)
