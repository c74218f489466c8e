"""What goes on to the next hop, what is added, and what a look-up is made of (RFC 9110 section 7.6)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.http import forwarding, grammar
from gateway.http import headers as h
from gateway.http.forwarding import (
    Hop,
    UpstreamRequestHeaders,
    forwards_left,
    lookup_request_headers,
    looped,
    sane_id,
    upstream_request_headers,
)
from gateway.http.grammar import HOP_BY_HOP, NEVER_NOMINATED, imitations
from gateway.http.headers import Header, Headers
from gateway.http.slots import filled, peer

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VIA = b"gateway (0a1b2c3d)"
HOP = Hop(host=b"upstream:9000", via=VIA)
TRUSTED = Hop(
    host=b"upstream:9000",
    via=VIA,
    trusted=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
)
HOST: Header = (b"host", b"gateway.example:8080")
OURS = {
    b"host",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"via",
}


def upstream(headers: Headers, hop: Hop, address: str, version: str) -> UpstreamRequestHeaders:
    """As they are sent: with the peer's address in its slots."""
    made = upstream_request_headers(headers, hop, hop.trusts(address), version)
    return UpstreamRequestHeaders([*filled(made, peer(address))], made.dropped)


def on(*headers: Header, hop: Hop = HOP, address: str = "192.0.2.7", version: str = "1.1") -> list[Header]:
    return upstream([HOST, *headers], hop, address, version)


def response_headers(headers: Headers, mine: Headers, request_id: str) -> list[Header]:
    """All that the client is told."""
    back = forwarding.client_response_headers(headers)
    return [*back.headers, *back.extra_headers([*mine], (b"x-request-id", request_id.encode()))]


def named(headers: Iterable[Header], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


# --- what goes on


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_a_hop_by_hop_field_never_goes_on_named_or_not(name: bytes) -> None:
    assert named(on((name, b"x"), (b"x-kept", b"1")), name) == []
    assert named(on((b"connection", name), (name, b"x")), name) == []
    assert named(response_headers([(name, b"x"), (b"x-kept", b"1")], (), "id-1"), name) == []


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-foo"],
        [b"close, x-foo"],
        [b"X-FOO"],
        [b",, x-foo ,"],
        [b"keep-alive", b"X-Foo"],
        [b"\tx-foo\t"],
        [b"TE, X-Foo, close"],
    ],
)
def test_a_field_that_connection_names_stays_on_this_hop(connection: list[bytes]) -> None:
    lines = [(b"connection", value) for value in connection]
    rest: list[Header] = [(b"x-foo", b"1"), (b"x-bar", b"2"), (b"x-foo", b"3")]

    for result in (on(*lines, *rest), on(*rest, *lines), response_headers([*rest, *lines], (), "id-1")):
        assert named(result, b"x-foo") == []
        assert named(result, b"x-bar") == [b"2"]
        assert named(result, b"connection") == []


def test_naming_host_takes_no_other_field_away() -> None:
    result = upstream([(b"connection", b"host"), HOST, (b"x-kept", b"1")], HOP, "192.0.2.7", "1.1")

    assert named(result, b"host") == [b"upstream:9000"]
    assert named(result, b"x-kept") == [b"1"]
    assert named(upstream([(b"connection", b"host")], HOP, "", "1.1"), b"host") == [b"upstream:9000"]


def test_the_options_of_connection_are_no_names_of_fields() -> None:
    headers: list[Header] = [
        (b"connection", b"close, keep-alive, upgrade, te"),
        (b"close", b"1"),
        (b"x", b"2"),
    ]

    assert h.end_to_end(headers) == [(b"close", b"1"), (b"x", b"2")]
    assert h.end_to_end([*headers, (b"connection", b"x")]) == [(b"close", b"1")]
    assert h.end_to_end([(b"x", b"2"), (b"te", b"trailers")]) == [(b"x", b"2")]


names = st.sampled_from(
    [b"x-a", b"x-b", b"set-cookie", b"cookie", b"accept", b"authorization", b"x_custom_id", b"if-match",
     b"content-length", b"content-type", b"cache-control", b"www-authenticate", b"retry-after"]
)  # fmt: skip
pairs = st.lists(st.tuples(names, st.binary(max_size=5)), max_size=12)
hops = st.lists(st.tuples(st.sampled_from(sorted(HOP_BY_HOP - {b"connection"})), st.just(b"x")), max_size=3)


@patient
@given(pairs, hops, st.booleans(), st.sampled_from(["10.1.2.3", "192.0.2.7", "::1", ""]))
def test_all_other_pairs_go_on_in_their_order_with_their_repeats(
    kept: list[Header], dropped: list[Header], close: bool, address: str
) -> None:
    mixed = [pair for two in zip(kept, dropped, strict=False) for pair in two]
    mixed += kept[len(dropped) :] + dropped[len(kept) :]
    if close:
        mixed.insert(len(mixed) // 2, (b"connection", b"close"))

    result = upstream(mixed, TRUSTED, address, "1.1")

    assert [pair for pair in result if pair[0] not in OURS] == kept
    assert sorted({name for name, _ in result} & OURS) == sorted(OURS)
    assert len([name for name, _ in result if name in OURS]) == len(OURS)


DASHED = sorted(
    name
    for name in forwarding.TRUSTED | forwarding.FORWARDING | grammar.METHOD_OVERRIDES | NEVER_NOMINATED
    if b"-" in name and b"_" not in name
)
# For which byte of a name which dash is written as an underscore: of any name in any way.
spellings = st.sampled_from([*DASHED, b"content-length", b"content-type", b"if-match", b"x-api-key"]).flatmap(
    lambda name: st.lists(st.booleans(), min_size=len(name), max_size=len(name)).map(
        lambda chosen: bytes(
            ord("_") if byte == ord("-") and as_underscore else byte
            for byte, as_underscore in zip(name, chosen, strict=True)
        )
    )
)
KEYED = Hop(host=b"upstream:9000", via=VIA, imitated=imitations([b"x-api-key"]))


@patient
@given(pairs, st.lists(spellings.filter(lambda name: b"_" in name), min_size=1, max_size=4), st.data())
def test_what_imitates_a_field_with_a_meaning_is_dropped_and_counted_and_nothing_else_is(
    kept: list[Header], imitating: list[bytes], data: st.DataObject
) -> None:
    mixed = [*kept]
    for name in imitating:
        mixed.insert(data.draw(st.integers(0, len(mixed))), (name, b"6.6.6.6"))

    result = upstream(mixed, KEYED, "192.0.2.7", "1.1")

    assert [pair for pair in result if pair[0] not in OURS] == kept
    assert result.dropped == len(imitating)
    assert not {name for name, _ in lookup_request_headers(result)}.intersection(imitating)


@pytest.mark.parametrize("name", [b"x_trace", b"_host", b"host_", b"x_api_key", b"user_agent", b"x-api_key"])
def test_another_name_with_an_underscore_goes_on(name: bytes) -> None:
    result = upstream([HOST, (name, b"1")], HOP, "192.0.2.7", "1.1")

    assert named(result, name) == [b"1"]
    assert result.dropped == 0


@pytest.mark.parametrize(
    "name", [b"x_http_method_override", b"x-http_method-override", b"x_http_method", b"x_method_override"]
)
def test_what_imitates_a_method_override_counts_as_one(name: bytes) -> None:
    assert h.method_overrides([(name, b"patch")]) == ["PATCH"]
    assert named(on((name, b"patch")), name) == []


@patient
@given(pairs, hops)
def test_all_pairs_of_a_reply_come_back_in_their_order_with_their_repeats(
    kept: list[Header], dropped: list[Header]
) -> None:
    mine: list[Header] = [(b"gateway-rewrite", b"r; filled=state"), (b"server-timing", b"upstream;dur=1")]

    assert response_headers([*dropped, *kept], (), "id-1") == [*kept, (b"x-request-id", b"id-1")]
    assert response_headers([*kept, *dropped], mine, "id-1")[: len(kept) + 2] == [*kept, *mine]


def test_nothing_is_added_that_the_client_did_not_say() -> None:
    """A16: no Accept, no Accept-Encoding, no User-Agent, no cookie."""
    assert {name for name, _ in on()} == OURS


def test_expect_was_for_the_gateway() -> None:
    assert named(on((b"expect", b"100-continue")), b"expect") == []


def test_host_becomes_the_upstream_s_or_stays_the_client_s() -> None:
    keeps = Hop(host=None, via=VIA)

    assert on()[0] == (b"host", b"upstream:9000")
    assert on(hop=keeps)[0] == HOST
    assert named(upstream([], keeps, "", "1.0"), b"host") == [b""]


# --- Via, Forwarded, X-Forwarded-*, X-Request-Id


@pytest.mark.parametrize(
    ("before", "version", "after"),
    [
        ([], "1.1", b"1.1 " + VIA),
        ([], "1.0", b"1.0 " + VIA),
        ([b"1.0 a"], "1.1", b"1.0 a, 1.1 " + VIA),
        ([b"1.0 a, 1.1 b (x)", b"2 c"], "1.1", b"1.0 a, 1.1 b (x), 2 c, 1.1 " + VIA),
    ],
)
def test_the_gateway_adds_itself_to_via(before: list[bytes], version: str, after: bytes) -> None:
    result = on(*((b"via", value) for value in before), version=version)

    assert named(result, b"via") == [after]


def test_a_message_that_has_been_here_is_known_by_its_via() -> None:
    assert looped(on(), HOP)
    assert looped(on((b"via", b"1.1 other"), hop=TRUSTED), HOP)
    assert looped([(b"via", b"1.0 a"), (b"via", b"1.1 " + VIA + b", 1.1 b")], HOP)


@pytest.mark.parametrize(
    "via", [None, b"1.1 other", b"1.1 gateway", b"1.1 gateway (ffffffff)", b"1.1 gateway (0A1B2C3D)"]
)
def test_another_gateway_is_no_loop(via: bytes | None) -> None:
    assert not looped([(b"via", via)] if via else [], HOP)
    assert not looped([(b"x-via", b"1.1 " + VIA)], HOP)


SAID = [
    (b"forwarded", b"for=198.51.100.1;proto=https"),
    (b"x-forwarded-for", b"198.51.100.1"),
    (b"forwarded", b'for="[2001:db8::1]"'),
    (b"x-forwarded-for", b"2001:db8::1, 198.51.100.2"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"public.example"),
    (b"x-forwarded-port", b"443"),
    (b"x-forwarded-prefix", b"/x"),
    (b"x-forwarded-server", b"edge"),
    (b"x-real-ip", b"198.51.100.1"),
]


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        (HOP, "10.0.0.1"),
        *((TRUSTED, other) for other in ("192.0.2.7", "11.0.0.1", "2001:db8::9", "", "unix")),
    ],
)
def test_what_a_stranger_says_of_the_hops_before_is_replaced(hop: Hop, address: str) -> None:
    result = on(*SAID, hop=hop, address=address)

    said = {name: named(result, name) for name, _ in SAID}
    assert [name for name in said if said[name] and name not in OURS] == []
    assert said[b"x-forwarded-for"] == [address.encode()]
    assert said[b"x-forwarded-proto"] == [b"http"]
    assert said[b"x-forwarded-host"] == [b"gateway.example:8080"]
    assert all(len(values) <= 1 for values in said.values())
    assert not any(b"198.51.100" in value for values in said.values() for value in values)


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_what_a_configured_proxy_says_is_kept_and_the_proxy_is_added(address: str) -> None:
    result = on(*SAID, hop=TRUSTED, address=address)

    node = f'"[{address}]"' if ":" in address else address
    assert named(result, b"forwarded") == [
        b'for=198.51.100.1;proto=https, for="[2001:db8::1]", '
        + f'for={node};host="gateway.example:8080";proto=http'.encode()
    ]
    assert named(result, b"x-forwarded-for") == [
        f"198.51.100.1, 2001:db8::1, 198.51.100.2, {address}".encode()
    ]
    for name, value in SAID[4:]:
        assert named(result, name) == [value]


def test_what_a_configured_proxy_does_not_say_is_added() -> None:
    result = on(hop=TRUSTED, address="10.0.0.1")

    assert named(result, b"x-forwarded-proto") == [b"http"]
    assert named(result, b"x-forwarded-host") == [b"gateway.example:8080"]


def test_nobody_is_trusted_where_nobody_is_configured() -> None:
    assert not HOP.trusts("127.0.0.1")
    assert TRUSTED.trusts("10.255.0.1")
    assert not TRUSTED.trusts("::ffff:10.0.0.1")
    assert not TRUSTED.trusts("10.0.0.1.example")


# RFC 7239 section 4, with the nodes that the gateway writes.
FORWARDED = re.compile(
    rb'for=(?:[0-9.]+|unknown|"\[[0-9a-fA-F:.%a-z]+\]");host="(?:[^"\\\x00-\x1f]|\\.)*";proto=http', re.DOTALL
)


@pytest.mark.parametrize(
    ("address", "node"),
    [
        ("192.0.2.7", b"192.0.2.7"),
        ("::1", b'"[::1]"'),
        ("2001:db8::7", b'"[2001:db8::7]"'),
        ("fe80::1%eth0", b'"[fe80::1%eth0]"'),
        ("", b"unknown"),
    ],
)
def test_an_ipv6_address_is_quoted_and_in_brackets(address: str, node: bytes) -> None:
    (forwarded,) = named(on(address=address), b"forwarded")

    assert forwarded == b"for=" + node + b';host="gateway.example:8080";proto=http'
    assert FORWARDED.fullmatch(forwarded)
    assert named(on(address=address), b"x-forwarded-for") == [address.encode()]


@patient
@given(
    st.lists(st.sampled_from([b'"', b"\\", b";", b",", b"=", b" ", b"a", b":1", b"\xff", b"\x80"])).map(
        b"".join
    )
)
def test_no_host_can_break_out_of_its_quotes(host: bytes) -> None:
    (forwarded,) = named(upstream([(b"host", host)], HOP, "192.0.2.7", "1.1"), b"forwarded")

    assert FORWARDED.fullmatch(forwarded)


@pytest.mark.parametrize(
    "value",
    [b"a", b"0af7651916cd43dd8448eb211c80319c", b"A-z_0.9~:/+=@", b"x" * 128, b"1-67891233-abcdef012345"],
)
def test_an_id_of_the_client_s_is_kept(value: bytes) -> None:
    assert sane_id(value)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"x" * 129, b"a b", b"a,b", b"a;b", b'a"b', b"a\\b", b"a\nb", b"a\x00", b"caf\xc3\xa9",
     b"{a}", b"<a>", b"a\x7f", b"%41"],
)  # fmt: skip
def test_an_id_that_a_log_or_a_header_could_not_carry_is_not_kept(value: bytes | None) -> None:
    assert not sane_id(value)


@patient
@given(st.binary(max_size=140))
def test_every_id_that_is_kept_is_printable_and_needs_no_quotes(value: bytes) -> None:
    if sane_id(value):
        assert re.fullmatch(rb"[!-~]{1,128}", value)
        assert not set(value) & set(b'"\\,;<>{}')


def test_the_client_s_request_id_makes_room_for_the_one_that_is_used() -> None:
    assert named(on((b"x-request-id", b"theirs"), (b"x-request-id", b"again")), b"x-request-id") == []


# --- the reply


def test_a_reply_has_the_gateway_s_word_only_from_the_gateway() -> None:
    said: list[Header] = [(b"gateway-rewrite", b"forged"), (b"server-timing", b"db;dur=1")]
    mine: list[Header] = [(b"gateway-rewrite", b"r"), (b"server-timing", b"upstream;dur=2")]

    assert named(response_headers(said, (), "i"), b"gateway-rewrite") == []
    assert named(response_headers(said, mine, "i"), b"gateway-rewrite") == [b"r"]
    assert named(response_headers(said, mine, "i"), b"server-timing") == [b"db;dur=1", b"upstream;dur=2"]


def test_a_reply_keeps_the_upstream_s_request_id_and_gets_one_if_it_has_none() -> None:
    assert named(response_headers([(b"x-request-id", b"theirs")], (), "mine"), b"x-request-id") == [b"theirs"]
    assert named(response_headers([], (), "mine"), b"x-request-id") == [b"mine"]


def test_a_reply_is_passed_on_with_its_cookies_limits_and_correlation() -> None:
    kept: list[Header] = [
        (b"set-cookie", b"a=1; Path=/"),
        (b"set-cookie", b"b=2"),
        (b"inin-correlation-id", b"x"),
        (b"inin-ratelimit-count", b"1"),
        (b"retry-after", b"Sun, 22 Nov 2026 12:00:00 GMT"),
        (b"proxy-status", b"upstream; error=dns_error"),
        (b"content-length", b"0"),
    ]

    assert response_headers(kept, (), "i")[: len(kept)] == kept


def test_a_page_of_another_origin_may_read_what_the_gateway_says() -> None:
    mine: list[Header] = [(b"gateway-rewrite", b"r")]
    allowed: Header = (b"access-control-allow-origin", b"*")

    (exposed,) = named(response_headers([allowed], mine, "i"), b"access-control-expose-headers")
    assert exposed.split(b", ")[0] == b"gateway-rewrite"
    assert named(response_headers([allowed], (), "i"), b"access-control-expose-headers") == []
    assert named(response_headers([], mine, "i"), b"access-control-expose-headers") == []
    mine.append((b"sunset", b"Wed, 30 Jun 2027 00:00:00 GMT"))
    (exposed,) = named(response_headers([allowed], mine, "i"), b"access-control-expose-headers")
    assert exposed == b"gateway-rewrite, server-timing, x-request-id, sunset"


def test_an_upstream_s_own_sunset_stands_alone() -> None:
    theirs: Header = (b"sunset", b"Wed, 30 Jun 2027 00:00:00 GMT")
    mine: list[Header] = [(b"deprecation", b"@1"), (b"sunset", b"Thu, 01 Jul 2027 00:00:00 GMT")]
    found = response_headers([theirs], mine, "i")

    assert named(found, b"sunset") == [theirs[1]]
    assert named(found, b"deprecation") == [b"@1"]


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, None),
        (b"0", 0),
        (b"00", 0),
        (b"1", 1),
        (b"007", 7),
        (b"99999999999", 999999999),
        (b"9" * 5000, 999999999),
        (b"abc", None),
        (b"-1", None),
        (b"1.5", None),
        (b"", None),
        (b"\xb2", None),
    ],
)
def test_max_forwards_is_a_number_or_says_nothing(value: bytes | None, left: int | None) -> None:
    assert forwards_left([(b"max-forwards", value)] if value is not None else []) == left


# --- look-up

BODY_S = [
    b"content-type", b"content-length", b"content-encoding", b"content-language", b"content-location",
    b"content-disposition", b"content-range", b"content-md5", b"content-digest", b"content-id",
    b"content-transfer-encoding", b"idempotency-key", b"expect",
]  # fmt: skip
CONDITIONS = [
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
    b"if-range",
    b"range",
]
METHOD_OVERRIDES = [b"x-http-method-override", b"x-http-method", b"x-method-override"]
CALLER_S = [
    b"authorization", b"cookie", b"x-api-key", b"user-agent", b"accept-language", b"traceparent", b"host",
    b"forwarded", b"x-forwarded-for", b"via", b"x-request-id", b"origin", b"referer",
]  # fmt: skip


@pytest.mark.parametrize("name", [*BODY_S, *CONDITIONS, *METHOD_OVERRIDES])
def test_nothing_of_the_patch_s_body_conditions_or_disguise_goes_with_a_look_up(name: bytes) -> None:
    assert named(lookup_request_headers([(b"x", b"1"), (name, b"x"), (name, b"y")]), name) == []


@pytest.mark.parametrize("name", CALLER_S)
def test_the_caller_and_the_trace_go_with_a_look_up(name: bytes) -> None:
    assert named(lookup_request_headers([(name, b"a"), (b"range", b"x"), (name, b"b")]), name) == [b"a", b"b"]


ASKED = [(b"accept", b"application/json"), (b"accept-encoding", b"identity"), (b"cache-control", b"no-cache")]


def test_a_look_up_asks_for_plain_json_that_no_cache_has_kept() -> None:
    result = lookup_request_headers(
        [
            (b"accept", b"text/html"),
            (b"accept-encoding", b"gzip, br"),
            (b"accept", b"*/*"),
            (b"cache-control", b"max-stale=60, only-if-cached"),
            (b"pragma", b"x"),
        ]
    )

    assert result == ASKED


@patient
@given(pairs)
def test_a_look_up_keeps_the_order_of_what_it_keeps(sent: list[Header]) -> None:
    unwanted = {b"accept", b"cache-control", b"content-length", b"content-type", b"if-match"}

    assert lookup_request_headers(sent)[:-3] == [pair for pair in sent if pair[0] not in unwanted]


# --- headers


@pytest.mark.parametrize(
    ("value", "kind", "parameters"),
    [
        (b"", b"", {}),
        (b"text/plain", b"text/plain", {}),
        (b" Text/Plain ; Charset = UTF-8 ", b"text/plain", {b"charset": b"UTF-8"}),
        (b'a/b;c="d";C=e', b"a/b", {b"c": b"d"}),
        (b"a/b;c", b"a/b", {}),
        (b"a/b;;=x;c=", b"a/b", {b"": b"x", b"c": b""}),
    ],
)
def test_a_media_type_is_read_with_its_parameters(
    value: bytes, kind: bytes, parameters: dict[bytes, bytes]
) -> None:
    assert h.media_type(value) == (kind, parameters)


@patient
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.binary(max_size=2))))
def test_a_value_is_replaced_at_the_first_one_s_place(sent: list[Header]) -> None:
    result = h.replaced(sent, b"a", b"new")

    assert [pair for pair in result if pair[0] != b"a"] == [pair for pair in sent if pair[0] != b"a"]
    assert h.every(result, b"a") == [b"new"]
    place = next((n for n, pair in enumerate(sent) if pair[0] == b"a"), len(result) - 1)
    assert result[place] == (b"a", b"new")
    assert h.first(sent, b"a") == next(iter(h.every(sent, b"a")), None)
    assert h.without(sent, [b"a"]) == [pair for pair in sent if pair[0] != b"a"]


def test_what_is_logged_of_a_value_is_printable_and_bounded() -> None:
    assert h.text(b"caf\xe9") == "caf\\xe9"
    assert len(h.text(b"\xff" * 10**6, 64)) == 4 * 64
    assert h.members([(b"a", b"x,, y\t,"), (b"b", b"z"), (b"a", b"w")], b"a") == [b"x", b"y", b"w"]


def test_no_hop_by_hop_field_is_one_of_those_that_connection_may_not_name() -> None:
    assert not HOP_BY_HOP & NEVER_NOMINATED
