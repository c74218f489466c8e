"""Callers are told apart by all that authenticates them, and nothing can be learned from how (S6, L3)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import app
from gateway.backend import Parts
from gateway.http.forwarding import lookup_request_headers
from gateway.http.headers import Fields, Header
from gateway.http.slots import FIXED, PEER, SLOTS, filled, peer
from gateway.state.credentials import IGNORED, CredentialFingerprints
from tests.support.gateways import settings as settings_of

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEY = b"k" * 32
names = st.sampled_from(
    [
        b"authorization", b"cookie", b"x-api-key", b"accept", b"accept-language", b"host", b"user-agent",
        b"traceparent", b"x-ignored", b"content-type", b"if-match", b"cache-control", b"range",
    ]
)  # fmt: skip
sent = st.lists(
    st.tuples(names, st.binary(max_size=6) | st.sampled_from([b"a", b"b", b"1:a", b"\n"])), max_size=5
)


def look_up(headers: list[Header], *ignored: bytes) -> dict[bytes, list[bytes]]:
    """What a look-up would say, of each field all its lines in their order, but for what is ignored."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in lookup_request_headers(headers):
        if name not in ignored:
            fields.setdefault(name, []).append(value)
    return fields


@patient
@given(sent, sent, st.data())
def test_two_callers_are_one_only_if_their_look_ups_are_the_same_request(
    one: list[Header], other: list[Header], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        other = data.draw(st.permutations(one))
    credentials = CredentialFingerprints("http://upstream", ignore=["X-Ignored"], key=KEY)
    ignored = (b"user-agent", b"traceparent", b"x-ignored")

    assert (credentials.of(one) == credentials.of(other)) is (
        look_up(one, *ignored) == look_up(other, *ignored)
    )


@patient
@given(*[st.tuples(st.binary(max_size=3), st.binary(max_size=3))] * 2, sent)
def test_what_the_look_up_has_of_the_query_and_the_certificate_count_too(
    one: tuple[bytes, bytes], other: tuple[bytes, bytes], fields: list[Header]
) -> None:
    credentials = CredentialFingerprints("http://upstream", key=KEY)

    assert (credentials.of(fields, *one) == credentials.of(fields, *other)) is (one == other)


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_can_neither_authorise_nor_select_tells_nobody_apart_unless_it_is_named(name: bytes) -> None:
    one, other = ([(b"authorization", b"a"), (name, value)] for value in (b"1", b"2"))
    shared = CredentialFingerprints("http://upstream", key=KEY)
    named = CredentialFingerprints("http://upstream", [name.decode().upper()], key=KEY)

    assert shared.of(one) == shared.of(other)
    assert named.of(one) != named.of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([(b"authorization", b"Bearer a")], [(b"authorization", b"Bearer b")]),
        ([(b"authorization", b"Bearer a")], [(b"authorization", b"bearer a")]),
        ([(b"authorization", b"Bearer a")], []),
        ([(b"cookie", b"a=1")], [(b"cookie", b"a=2")]),
        ([(b"authorization", b"a"), (b"cookie", b"b")], [(b"authorization", b"b"), (b"cookie", b"a")]),
        ([(b"authorization", b"ab")], [(b"authorization", b"a"), (b"authorization", b"b")]),
        ([(b"cookie", b"a; b")], [(b"cookie", b"a"), (b"cookie", b"b")]),
        ([(b"authorization", b"x\n6:cookie=1:y")], [(b"authorization", b"x"), (b"cookie", b"y")]),
    ],
)
def test_whoever_differs_in_one_of_them_is_somebody_else(one: list[Header], other: list[Header]) -> None:
    credentials = CredentialFingerprints("http://upstream", key=KEY)

    assert credentials.of(one) != credentials.of(other)


def test_what_does_not_authenticate_tells_nobody_apart() -> None:
    credentials = CredentialFingerprints("http://upstream", key=KEY)
    token = (b"authorization", b"Bearer a")

    assert credentials.of([token, (b"user-agent", b"1")]) == credentials.of([(b"accept", b"*/*"), token])


def test_a_configured_header_counts_however_it_is_written() -> None:
    credentials = CredentialFingerprints("http://upstream", ["X-Api-KEY"], key=KEY)

    assert credentials.of([(b"x-api-key", b"1")]) != credentials.of([(b"x-api-key", b"2")])


def test_the_same_caller_at_another_upstream_is_somebody_else() -> None:
    token: list[Header] = [(b"authorization", b"Bearer a")]

    assert CredentialFingerprints("http://a", key=KEY).of(token) != CredentialFingerprints(
        "http://b", key=KEY
    ).of(token)


def test_who_has_another_key_learns_nothing_from_a_fingerprint() -> None:
    token: list[Header] = [(b"authorization", b"Bearer a")]
    one, again, other = (CredentialFingerprints("http://a", key=key) for key in (KEY, KEY, b"x" * 32))

    assert one.of(token) == again.of(token)
    assert one.of(token) != other.of(token)


@pytest.mark.parametrize("key", [b"", b"k" * 15, b"k" * 65])
def test_a_key_that_anybody_could_guess_or_that_is_too_long_is_none(key: bytes) -> None:
    with pytest.raises(ValueError, match="16 to 64 bytes"):
        CredentialFingerprints("http://a", key=key)


def test_a_gateway_that_is_given_no_key_draws_one(tmp_path: Path) -> None:
    """So a log tells nothing about another process's."""
    drawn: list[CredentialFingerprints] = []

    class Drawn(CredentialFingerprints):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            drawn.append(self)

    chosen = settings_of("http://a", str(tmp_path / "audit"))
    for key in (None, None, KEY, KEY):
        app.build(chosen, parts=Parts(credentials=Drawn), credential_key=key).audit.close()
    names = [one.of([(b"authorization", b"Bearer a")]) for one in drawn]

    assert len(set(names)) == 3
    assert names[2] == names[3]


def test_the_hash_has_nothing_of_the_secret_and_cannot_be_made_without_the_key() -> None:
    secret = b"Bearer 2YotnFZFEjr1zCsicMWpAA"
    found = CredentialFingerprints("http://a", key=KEY).of([(b"authorization", secret)])

    assert len(found) == 32
    assert set(found) <= set("0123456789abcdef")
    guesses = {
        hashlib.new(name, text).hexdigest()
        for name in ("sha256", "md5", "sha1", "blake2b")
        for text in (secret, b"authorization" + secret, secret.removeprefix(b"Bearer "))
    }
    assert not any(guess.startswith(found) for guess in guesses)


def test_callers_without_credentials_share_one_name() -> None:
    credentials = CredentialFingerprints("http://a", key=KEY)

    assert credentials.of([]) == credentials.of([(b"accept", b"*/*")])
    assert credentials.of([]) != credentials.of([(b"authorization", b"")])


def test_a_caller_has_one_share_however_it_varies_what_authorises_nobody() -> None:
    fingerprints = CredentialFingerprints("http://upstream", ["X-Api-Key"], key=b"k" * 32)

    def caller(*fields: Header, address: str = "192.0.2.1") -> str:
        return fingerprints.caller(fields, address)

    token, key = (b"authorization", b"Bearer a"), (b"x-api-key", b"one")
    assert caller(token) == caller((b"x-any", b"1"), token, (b"cookie", b"varied"), address="192.0.2.2")
    assert caller(key) == caller((b"accept", b"*/*"), key)
    assert len({caller(token), caller((b"authorization", b"Bearer b")), caller(key), caller()}) == 4
    assert caller() == caller((b"x-any", b"1")) != caller(address="192.0.2.2")


async def test_a_field_that_counts_and_has_a_slot_counts_with_what_is_put_in() -> None:
    """S6: else whoever comes from another address would have the same fingerprint."""
    fields = Fields([(b"host", b"h"), (b"x-forwarded-for", PEER)])
    by_address = CredentialFingerprints("http://u", ["X-Forwarded-For"], key=b"k" * 32)
    others = CredentialFingerprints("http://u", key=b"k" * 32)
    one, two = peer("192.0.2.1"), peer("192.0.2.2")
    assert by_address.of_call(fields, b"", b"", one) != by_address.of_call(fields, b"", b"", two)
    assert by_address.of_call(fields, b"", b"", one) == by_address.of_call(fields, b"", b"", one)
    assert others.of_call(fields, b"", b"", one) == others.of_call(fields, b"", b"", two)


NAMES = st.sampled_from([b"authorization", b"cookie", b"x", b"date", b"user-agent", b"accept", b"host"])


@given(st.lists(st.tuples(NAMES, st.binary(max_size=3)), max_size=4))
def test_fields_with_slots_have_the_fingerprint_and_the_caller_of_the_fields_themselves(
    pairs: list[tuple[bytes, bytes]],
) -> None:
    """S6: two callers have one set of fields with slots, and never one fingerprint."""
    made = CredentialFingerprints("http://u", key=b"k" * 32)
    slots, values = iter(SLOTS), tuple(value for name, value in pairs if name not in FIXED)
    slotted = Fields([(name, next(slots) if name not in FIXED else value) for name, value in pairs])
    for _ in range(2):
        assert made.of_call(slotted, b"", b"", (*values, *peer("::1"))) == made.of(pairs)
        assert made.caller_of(slotted, (*values, *peer("::1")), "::1", b"/") == made.caller(pairs, "::1")
    other = tuple(value + b"!" for value in values)
    if made.caller_tells_all(slotted, slotted):
        for given in (values, other, values):
            plain = filled(slotted, given)
            caller = made.caller(plain, "::1")
            assert made.of_call(slotted, b"", b"", (*given, *peer("::1")), caller) == made.of(plain)
    counted = any(name not in FIXED | IGNORED for name, _ in pairs)
    assert (made.of_call(slotted, b"", b"", (*other, *peer("::1"))) == made.of(pairs)) is (not counted)


TOKEN_SLOT, OTHER_SLOT = (b"authorization", SLOTS[0]), (b"cookie", SLOTS[1])


@pytest.mark.parametrize(
    ("headers", "upstream", "told"),
    [
        ([TOKEN_SLOT, (b"user-agent", SLOTS[1])], None, True),
        ([TOKEN_SLOT, OTHER_SLOT], None, False),
        ([(b"host", b"h")], None, False),
        ([TOKEN_SLOT, OTHER_SLOT], [OTHER_SLOT], False),  # what names the caller does not go on
        ([TOKEN_SLOT, OTHER_SLOT], [], False),
    ],
)
def test_the_caller_tells_all_only_where_no_other_value_counts(
    headers: list[Header], upstream: list[Header] | None, told: bool
) -> None:
    """S6: else two that differ in another field would share what was read."""
    made = CredentialFingerprints("http://u", key=KEY)
    assert made.caller_tells_all(headers, headers if upstream is None else upstream) is told
