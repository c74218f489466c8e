"""Which conversations there are, from a file or on demand, and who sees which state of them when."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway.mock import server as mock_module
from gateway.mock.api import Participant
from gateway.mock.server import Conversation, Conversations, InvalidConversations, MockSettings, load
from tests.support.clock import Clock
from tests.support.mocking import API, code, mock, one_conversation


async def test_a_get_shows_the_state_before_until_the_lag_has_passed() -> None:
    clock = Clock()

    async def shown(caller: httpx.AsyncClient) -> str:
        state = (await caller.get(f"{API}/calls/c1")).json()["participants"][0]["state"]
        return str(state)

    async with (
        mock(one_conversation("calls", p1="alerting"), lag=2, clock=clock) as upstream,
        upstream.client() as caller,
    ):
        await caller.patch(f"{API}/calls/c1/participants/p1", json={"state": "connected"})
        assert (await shown(caller), upstream.state("c1", "p1")) == ("alerting", "connected")
        clock.now += 1.5
        upstream.change("c1", "p1", state="disconnected")
        clock.now += 0.5
        assert await shown(caller) == "connected"
        clock.now += 1.5
        assert await shown(caller) == "disconnected"
        assert len(upstream.conversations.conversations["c1"].versions) == 3
        upstream.change("c1", "p1", state="connected")
        assert len(upstream.conversations.conversations["c1"].versions) == 2, "the past is not kept for ever"


async def test_etags_when_they_are_switched_on() -> None:
    async with mock(etags=True) as upstream, upstream.client() as caller:
        tag = (await caller.get(f"{API}/calls/c1")).headers["etag"]
        unchanged = await caller.get(f"{API}/calls/c1", headers={"if-none-match": f'"0", W/{tag}'})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)

        path = f"{API}/calls/c1/participants/p1"
        patch = {"url": path, "json": {"state": "alerting"}}
        assert (await caller.patch(**patch, headers={"if-match": tag})).status_code == 202  # type: ignore[arg-type]
        assert code(await caller.patch(**patch, headers={"if-match": tag})) == (412, "precondition.failed")  # type: ignore[arg-type]
        assert (await caller.patch(**patch, headers={"if-match": "*"})).status_code == 202  # type: ignore[arg-type]
        missing = await caller.patch(path, json={}, headers={"if-match": tag})
        assert missing.status_code == 400, "a precondition counts only for what would succeed"
        fresh = await caller.get(f"{API}/calls/c1", headers={"if-none-match": tag})
        assert fresh.status_code == 200
    async with mock() as upstream, upstream.client() as caller:
        assert "etag" not in (await caller.get(f"{API}/calls/c1")).headers


async def test_a_caller_sees_only_the_participants_that_its_token_may_see() -> None:
    people = {
        "p1": Participant(tokens=frozenset({"alice"})),
        "p2": Participant(tokens=frozenset({"alice", "bob"})),
    }
    async with (
        mock(Conversations({"c1": Conversation("calls", people)})) as upstream,
        upstream.client() as caller,
    ):
        for token, seen in (("alice", ["p1", "p2"]), ("bob", ["p2"])):
            reply = await caller.get(f"{API}/calls/c1", headers={"authorization": f"Bearer {token}"})
            assert [participant["id"] for participant in reply.json()["participants"]] == seen
        stranger = await caller.get(f"{API}/calls/c1", headers={"authorization": "Bearer eve"})
        assert code(stranger) == (403, "not.authorized")
        hidden = await caller.patch(
            f"{API}/calls/c1/participants/p1",
            json={"state": "disconnected"},
            headers={"authorization": "Bearer bob"},
        )
        assert hidden.status_code == 404
        assert upstream.state("c1", "p1") == "connected"


async def test_on_demand_a_participant_exists_from_the_moment_it_is_named() -> None:
    async with mock(lag=60) as upstream, upstream.client() as caller:
        await caller.patch(f"{API}/callbacks/c1/participants/new", json={"state": "connected"})
        names = [p["id"] for p in (await caller.get(f"{API}/callbacks/c1")).json()["participants"]]
        assert sorted(names) == ["new", "p1", "p2"]
        for implausible in ("%20", "a%2Fb", "..", "x" * 101):
            reply = await caller.get(httpx.URL(upstream.url, raw_path=f"{API}/{implausible}".encode()))
            assert reply.status_code == 404


@pytest.mark.no_cover
def test_conversations_made_on_demand_are_bounded_and_listed_ones_are_kept() -> None:
    conversations = Conversations({"kept": Conversation()}, on_demand=True)
    for number in range(mock_module.MAX_MADE + 10):
        conversations.find(str(number))
    assert len(conversations.made) == mock_module.MAX_MADE
    assert conversations.find("kept") is conversations.conversations["kept"]


async def test_a_file_says_exactly_which_conversations_exist(tmp_path: Path) -> None:
    file = tmp_path / "conversations.yaml"
    file.write_text(
        """
        conversations:
          c1:
            media: chats
            participants:
              p1: {state: alerting, purpose: customer, attributes: {note: text}, tokens: [alice]}
        """
    )
    async with mock(load(file)) as upstream, upstream.client() as caller:
        assert (await caller.get(f"{API}/chats/c1")).json() == {
            "id": "c1",
            "participants": [
                {"id": "p1", "purpose": "customer", "state": "alerting", "attributes": {"note": "text"}}
            ],
        }
        assert (await caller.get(f"{API}/chats/c2")).status_code == 404
    file.write_text(file.read_text() + "\n        on_demand: true\n")
    assert load(file).find("c2") is not None
    file.write_text("")
    assert load(file).find("any") is not None, "no conversation listed: made on demand"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("- c1", ["document: "]),
        ("conversations: {c1: {media: fax}}\nondemand: yes", ["conversations.c1.media: ", "ondemand: "]),
        (
            "conversations: {c1: {participants: {p1: {state: busy, attributes: {n: 1}}}}}",
            [
                "conversations.c1.participants.p1.state: Input should be 'alerting'",
                "conversations.c1.participants.p1.attributes.n: Input should be a valid string, got 1",
            ],
        ),
        ("conversations: {c1: [", ["not YAML: "]),
        ("conversations: {c1: {versions: []}}", ["conversations.c1.versions: "]),
    ],
)
def test_a_bad_file_is_refused_with_every_fault_and_its_place(
    tmp_path: Path, text: str, messages: list[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConversations) as caught:
        load(file)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(str(file))]
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"{file}: {message}")


def test_a_missing_file_and_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConversations, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    for wrong in ({"profile": "lax"}, {"lag": -1.0}, {"lag": float("nan")}, {"rate_limit": -1}):
        with pytest.raises(ValueError, match="must be"):
            MockSettings(**wrong)
