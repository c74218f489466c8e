"""What a reading costs: how often it is parsed and gone through, and how many values it may have (O1)."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import LookupFailed
from gateway.proxy.buffered import BufferBudget
from gateway.repairs import Unfilled, select
from gateway.repairs.select import Listed
from gateway.state.documents import MAX_READ, judged, names_a_member_twice, parsed
from gateway.state.lookup import MAX_SEARCHED, MAX_SEARCHED_SIZE
from gateway.state.lookup_results import LookupResult
from tests.state.test_lookup import JSON, Bench
from tests.support.counting import calls_of

UNUSUAL = "$..[?@.id == _.participant].state"
PEOPLE = ["p1", "p2", "p3", "p4", "p5"]
ETAG = (b"etag", b'"1"')


def document(values: int = 0) -> bytes:
    """With five participants, and so many values below the outermost; 0: no more than it takes."""
    people = [{"id": one, "state": "connected"} for one in PEOPLE]
    least = 3 + 3 * len(people)  # participants, more, and the first in there; a participant has two members
    more = [0] * (max(values, least) - least + 1)
    body = json.dumps({"participants": people, "more": more}).encode()
    assert not values or below(json.loads(body)) == values
    return body


def below(document: Any) -> int:
    """The values in it, and in these."""
    if isinstance(document, dict | list):
        inner = document.values() if isinstance(document, dict) else document
        return sum(1 + below(one) for one in inner)
    return 0


@pytest.mark.parametrize("query", ["$.participants[?@.id == _.participant].state", UNUSUAL])
async def test_a_reading_is_parsed_once_and_gone_through_once_for_a_participant(query: str) -> None:
    bench = Bench(max_body=2**20)
    bench.transport.will(200, document(), JSON, ETAG)
    bench.transport.will(304)
    with calls_of(judged, parsed, select.values, Listed.index) as calls:
        for _ in range(3):
            found = await asyncio.gather(*(bench.result(select=query) for _ in range(10)))
            assert {one.value for one in found} == {"connected"}
        bench.now += 2  # it is revalidated
        assert (await bench.result(select=query)).value == "connected"

    assert len(bench.transport.asked) == 2
    assert calls == {"judged": 1, "values": 1} | ({} if query == UNUSUAL else {"index": 1})


async def test_a_reading_is_parsed_twice_and_gone_through_twice_for_any_number_of_participants() -> None:
    bench = Bench(max_body=2**20)
    bench.transport.will(200, document(), JSON)
    with calls_of(judged, parsed, Listed.index) as calls:
        for _ in range(3):
            for participant in [*PEOPLE, "nobody", "no one"]:
                found = await bench.lookups.look_up(bench.request(participant=participant))
                assert isinstance(found, LookupResult) == (participant in PEOPLE)

    assert len(bench.transport.asked) == 1
    assert calls == {"judged": 1, "parsed": 1, "index": 2}


texts = st.text('":\\,{}a \n😀\ud83d', max_size=4) | st.sampled_from(['":', ":", '\\":', "\\", '"'])
objects = st.recursive(
    st.none() | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@settings(deadline=None)
@given(
    st.dictionaries(texts, objects, min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_a_member_named_twice_is_seen_whatever_stands_in_names_and_texts(
    one: dict[str, Any], ascii_only: bool, by_number: bool, indent: int | None
) -> None:
    text = json.dumps(one, ensure_ascii=ascii_only or "\\ud83d" in json.dumps(one), indent=indent)
    if by_number:  # the same, written otherwise
        text = re.sub(r"\\(.)", lambda escaped: r"\u0022" if escaped[1] == '"' else escaped[0], text)
    name = json.dumps(next(iter(one)))
    twice = f"{text[:-1]},{name}:0}}"

    assert judged(text.encode()) == (one, False)
    assert judged(twice.encode())[1]


async def test_a_reading_is_read_up_to_its_bound_and_past_it_is_a_failed_look_up() -> None:
    bench = Bench(max_body=2**20)
    bench.transport.will(200, document(MAX_READ), JSON)
    bench.transport.will(200, document(MAX_READ + 1), JSON)
    assert (await bench.result()).value == "connected"
    bench.now += 2

    with (
        calls_of(names_a_member_twice) as calls,
        pytest.raises(LookupFailed, match=f"has more than {MAX_READ} values"),
    ):
        await bench.result()
    assert not calls


async def test_a_query_of_an_unusual_shape_is_tried_up_to_its_bound_and_a_usual_one_past_it() -> None:
    bench = Bench(max_body=2**20)
    for values in (MAX_SEARCHED, MAX_SEARCHED + 1):
        bench.transport.will(200, document(values), JSON)
    assert (await bench.result(select=UNUSUAL)).value == "connected"
    bench.now += 2

    with calls_of(select.values) as calls:
        found = await bench.lookups.look_up(bench.request(select=UNUSUAL))
    assert (found, calls) == (Unfilled("too-many-values"), {})
    assert (await bench.result()).value == "connected"
    assert len(bench.transport.asked) == 2


async def test_nor_is_it_tried_on_more_bytes_than_its_bound() -> None:
    bench = Bench(max_body=2**20, budget=BufferBudget(2**20, 2**20))
    for more in (0, 1):
        padded = document().ljust(MAX_SEARCHED_SIZE + more)
        bench.transport.will(200, padded, JSON)
    assert (await bench.result(select=UNUSUAL)).value == "connected"
    bench.now += 2
    assert await bench.lookups.look_up(bench.request(select=UNUSUAL)) == Unfilled("too-many-values")
    assert (await bench.result()).value == "connected"
