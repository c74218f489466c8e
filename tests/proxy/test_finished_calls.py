"""Whoever watches is told of each matched call when it is over, and of no other."""

from __future__ import annotations

import pytest

from gateway.audit.finished_call import FinishedCall
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, gateway
from tests.support.mocking import mock
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize(
    ("mode", "status", "changed", "would_change", "needs"),
    [
        ("enforce", 202, ["content_type", "fill"], [], ()),
        ("shadow", 400, [], ["content_type", "fill"], ()),
        ("observe", 400, [], [], ("content_type", "fill state")),
    ],
)
async def test_a_matched_call_is_told_of_when_it_is_over(
    mode: str, status: int, changed: list[str], would_change: list[str], needs: tuple[str, ...]
) -> None:
    seen: list[FinishedCall] = []
    async with (
        mock() as upstream,
        gateway(upstream.url, rule={"mode": mode}, observers=[seen.append]) as running,
        running.client() as client,
    ):
        await client.get("/api/v2/users/me")
        headers = {**TOKEN, "Content-Type": "text/plain", "User-Agent": "legacy/1.0", "X-Request-Id": "one"}
        await client.patch(PARTICIPANT, content=BODY, headers=headers)
        await until(lambda: seen)
        recorded = running.lines()[0]["id"]
    (call,) = seen
    assert (call.request_id, call.rule, call.mode, call.user_agent) == (
        "one",
        "web-participant-state",
        mode,
        "legacy/1.0",
    )
    assert call.id == recorded != "one"
    assert (call.method, call.path, call.address) == ("PATCH", PARTICIPANT, "127.0.0.1")
    assert [one["repair"] for one in call.changes] == changed
    assert [one["repair"] for one in call.would_change] == would_change
    assert (call.needs, call.error, call.conflict) == (needs, None, False)
    assert call.total >= call.upstream > 0
    assert call.status is not None
    assert call.status // 100 == status // 100


class Sample:
    """Wants the second call."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.seen: list[FinishedCall] = []

    def wants(self, rewritten: bool) -> bool:
        self.asked.append(rewritten)
        return len(self.asked) == 2

    def __call__(self, call: FinishedCall) -> None:
        self.seen.append(call)


async def test_who_looks_at_some_calls_is_asked_of_each_and_told_of_those() -> None:
    sample, seen = Sample(), list[FinishedCall]()
    headers = {**TOKEN, "Content-Type": "application/json"}
    async with (
        mock() as upstream,
        gateway(upstream.url, observers=[sample, seen.append]) as running,
        running.client() as client,
    ):
        for body in (BODY, BODY, b'{"state": "connected"}'):
            await client.patch(PARTICIPANT, content=body, headers=headers)
        await until(lambda: len(seen) == 3)
    assert sample.asked == [True, True, False]
    assert sample.seen == seen[1:2]
