"""
The loop's time that the worst bodies and readings cost which are still read: `python -m benchmarks.worst`.

Each is right under a bound: of bytes, of values, of what a body may inflate to. Milliseconds, the median of
five. A body is diagnosed, filled and digested as it came and as it goes; a reading is parsed, looked through
for members that it names twice, and chosen from for one participant (`reading`), or learned from a client's
own compressed GET (`learned`); what the second participant adds is `next`. Prints the twelve worst bodies and
the twelve worst readings, each with its milliseconds, and then those of what is refused past the bounds.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from gateway.audit.writer import AuditLog
from gateway.errors import GatewayError
from gateway.http.content_coding import inflate
from gateway.http.headers import Header
from gateway.repairs import build, diagnose, json_text, rewrite, select
from gateway.repairs.call import Change
from gateway.repairs.json_text import too_many_values
from gateway.repairs.repair import Repair
from gateway.state import documents, lookup
from tests.support.gateways import settings
from tests.support.nasty import SIZE, admitted_objects, nasty_objects
from tests.support.repairing import called

QUERY = "$.a[?@.id == _.p].state"
UNUSUAL = ("$..[?@.id == _.p].state", "$..state", "$.a[?@.id != _.p]..state")
GZIP: Header = (b"content-encoding", b"gzip")
# Charsets that are slow, and texts that are slow in them.
CHARSETS = (
    ("utf-16-le", "é"), ("utf-32-le", "😀"), ("latin-1", "é"), ("gb18030", "😀"), ("gb18030", "ä中"),
    ("shift_jis", "中"), ("big5hkscs", "中"), ("iso2022_jp", "a中"), ("iso2022_jp", "x"), ("cp949", "한"),
)  # fmt: skip
RUNS = 5

audit = AuditLog("/dev/null", time.time)


def milliseconds(call: Callable[[], Any], runs: int = RUNS) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        with suppress(GatewayError):
            call()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def body(by: tuple[Repair, ...], sent: bytes, *headers: Header) -> None:
    call = called(sent, *headers)
    found = diagnose(call, by)
    values = {one.field: ("connected", Change.of("fill", field=one.field)) for one in found.missing}
    after, changes = rewrite(found, values)
    if changes:
        audit.digest(call.body)
        audit.digest(after.body)


def reading(query: str, sent: bytes) -> None:
    document, _ = documents.judged(sent)
    select.values(query, document, {"p": "p1"})


def learned(packed: bytes) -> None:
    reading(QUERY, inflate(packed, b"gzip", SIZE))


def following(sent: bytes) -> None:
    usual = select.listed(QUERY)
    assert usual is not None
    document = documents.parsed(sent)
    with json_text.collector_at_rest():
        usual.index(document)


def packed(text: bytes) -> bytes:
    """With something in it that does not shrink, where it else grows past what is inflated."""
    found = gzip.compress(text)
    return found if len(found) * 100 >= len(text) else gzip.compress(text, 0)


def bodies(by: tuple[Repair, ...]) -> Iterator[tuple[str, float]]:
    def too_many(text: str) -> bool:
        return len(text) > json_text.UNCOUNTED and too_many_values(text, json_text.MAX_VALUES)

    for name, text in admitted_objects(too_many):
        plain = text.encode()
        yield f"body: {name}", milliseconds(partial(body, by, plain))
        yield f"body, cut off: {name}", milliseconds(partial(body, by, plain[:-1]))
        kind: Header = (b"content-type", b"text/plain; charset=iso-2022-jp")
        yield f"body, packed: {name}", milliseconds(partial(body, by, packed(plain), kind, GZIP))
    small = "[" + "{}," * (json_text.UNCOUNTED // 3 - 8) + "0]"
    yield "body: uncounted", milliseconds(partial(body, by, f'{{"a":{small}}}'.encode()))
    for charset, text in CHARSETS:
        values = '{"a":[' + "{}," * (json_text.MAX_VALUES // 2 - 8) + '0],"b":"'
        unit = len((values + text * 100).encode(charset)) - len(values.encode(charset))
        in_utf_8 = (SIZE - 2 - len(values)) // len(text.encode())
        count = min(in_utf_8, (SIZE - 64 - len(values.encode(charset))) * 100 // unit)
        sent = (values + text * count + '"}').encode(charset)
        kind = (b"content-type", b"application/json; charset=" + charset.encode())
        for name, one in (("", sent), (", cut off", sent[: -len("}".encode(charset))])):
            yield f"body in {charset}{name}: {text}", milliseconds(partial(body, by, one, kind))
            both = gzip.compress(one, 1) if len(gzip.compress(one, 1)) * 100 > len(one) else packed(one)
            yield (
                f"body in {charset}, packed{name}: {text}",
                milliseconds(partial(body, by, both, kind, GZIP)),
            )


def readings() -> Iterator[tuple[str, float]]:
    for name, text in admitted_objects(lambda text: too_many_values(text, documents.MAX_READ)):
        plain = text.encode()
        yield f"reading: {name}", milliseconds(partial(reading, QUERY, plain))
        yield f"reading, next: {name}", milliseconds(partial(following, plain))
        yield f"reading, learned: {name}", milliseconds(partial(learned, packed(plain)))
    people = [{"id": f"p{number}", "state": "connected"} for number in range(documents.MAX_READ // 3 - 8)]
    plain = json.dumps({"a": people}).encode()
    yield "reading: participants", milliseconds(partial(reading, QUERY, plain))
    yield "reading, next: participants", milliseconds(partial(following, plain))
    size = lookup.MAX_SEARCHED_SIZE - 16
    for name, text in admitted_objects(lambda text: too_many_values(text, lookup.MAX_SEARCHED), size):
        for query in UNUSUAL:
            yield f"reading by {query}: {name}", milliseconds(partial(reading, query, text.encode()))


def refused(by: tuple[Repair, ...]) -> Iterator[tuple[str, float]]:
    for name, plain in nasty_objects():
        yield f"refused body: {name}", milliseconds(partial(body, by, plain), 1)
        yield f"refused body, packed: {name}", milliseconds(partial(body, by, gzip.compress(plain), GZIP), 1)
        yield f"refused reading: {name}", milliseconds(partial(reading, QUERY, plain), 1)


def main() -> None:
    (rule,) = settings("http://upstream", "-").rules
    by = build(rule.repairs, SIZE, rule.parameters)
    for of in (bodies(by), readings(), refused(by)):
        found = sorted(of, key=lambda one: -one[1])
        for name, took in found[:12]:
            print(f"{took:7.1f}  {name}")
        print()


if __name__ == "__main__":
    main()
