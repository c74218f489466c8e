"""Bodies of up to 1 MiB that cost a reader the most, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

SIZE = 2**20
# Values of each kind. The last but one is the hardest kind of number: halfway between two floats, but for its
# last digit.
UNITS = (
    "{}", "[]", "0", "1e4", '""', '"ab"', '{"":{}}', '{"a":0}', "[" * 900 + "]" * 900,
    "1.2345678901234567e300", "9007199254740993.00000000000000000000000000000001", '"' + r"\n" * 8 + '"',
)  # fmt: skip
TEXTS = (r"\n", r"\ud83d\ude00", "9", ",", "[")


def nasty_objects() -> Iterator[tuple[str, bytes]]:
    """JSON objects, each with what it is made of: as many values as there is room for."""
    for one in UNITS:
        inside = ",".join([one] * (SIZE // (len(one) + 1) - 8))
        yield f"{one[:24]} again and again", f'{{"a":[{inside}]}}'.encode()
    for one in TEXTS:
        yield f"a text of {one}", f'{{"a":"{one * (SIZE // len(one) - 8)}"}}'.encode()
    members = ",".join(f'"{number:x}":0' for number in range(SIZE // 9))
    yield "members", f"{{{members}}}".encode()
    yield "digits", b'{"a":%b}' % (b"9" * (SIZE - 8))
    yield "never closed", b'{"a":' * (SIZE // 5)


def admitted_objects(too_many: Callable[[str], bool], size: int = SIZE) -> Iterator[tuple[str, str]]:
    """As many values as are read, and the rest a text that is as slow."""
    for one in UNITS:
        count = _most(one, too_many, size)
        for text in TEXTS:
            yield f"{one[:14]} and {text[:6]}", _with(one, count, text, size)
        yield f"{one[:14]} and half an emoji", _with(one, count, r"\n", size)[:-2] + r'\ud83d"}'
    count = _most('"":0', too_many, size)
    members = ",".join(f'"{number:x}":0' for number in range(min(count, size // 9) - 4))
    yield "members", f"{{{members}}}"
    yield "digits", f'{{"a":{"9" * (size - 8)}}}'


def _with(one: str, count: int, text: str, size: int) -> str:
    values = f'{{"a":[{",".join([one] * count)}],"b":"'
    return values + text * ((size - 2 - len(values)) // len(text)) + '"}'


def _most(one: str, too_many: Callable[[str], bool], size: int) -> int:
    few, many = 1, size // (len(one) + 1) - 8
    while few < many:
        middle = (few + many + 1) // 2
        if too_many(f'{{"a":[{",".join([one] * middle)}],"b":"{"x" * 100_000}"}}'):
            many = middle - 1
        else:
            few = middle
    return few
