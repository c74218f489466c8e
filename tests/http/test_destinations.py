"""Which upstream a request is for, and what its target is there; what a reply then says of its own place."""

from __future__ import annotations

import pytest

from gateway.errors import NotServed
from gateway.http.destinations import Destination, Destinations
from gateway.http.headers import Fields
from gateway.http.relocated import relocated

NAMED = (
    Destination("any-eu", prefix=b"/eu"),
    Destination("login", prefix=b"/oauth", strips=False),
    Destination("us", hosts=frozenset({b"us.example", b"[::1]"})),
    Destination("us-eu", hosts=frozenset({b"us.example"}), prefix=b"/eu"),
    Destination("deep", prefix=b"/eu/deep"),
)


@pytest.mark.parametrize(
    ("host", "target", "chosen"),
    [
        (b"h", b"/eu/a?b", ("any-eu", b"/a?b")),
        (b"h", b"/eu", ("any-eu", b"/")),
        (b"h", b"/eu?x=/eu/", ("any-eu", b"/?x=/eu/")),
        (b"h", b"/eu/", ("any-eu", b"/")),
        (b"h", b"/eu//a/../b%2f", ("any-eu", b"//a/../b%2f")),
        (b"h", b"/eu/deep/a", ("deep", b"/a")),
        (b"h", b"/eu/deeper", ("any-eu", b"/deeper")),
        (b"h", b"/oauth/token", ("login", b"/oauth/token")),
        (b"US.example:8443", b"/a", ("us", b"/a")),
        (b"[::1]:80", b"/a", ("us", b"/a")),
        (b"us.example", b"/eu/deep/a", ("us-eu", b"/deep/a")),
        (b"us.example", b"/oauth/token", ("us", b"/oauth/token")),
        (b"us.example.evil", b"/a", ("", b"/a")),
        (b"", b"/europe", ("", b"/europe")),
        (b"h", b"/EU/a", ("", b"/EU/a")),
        (b"h", b"/%65u/a", ("", b"/%65u/a")),
        (b"h", b"//eu/a", ("", b"//eu/a")),
        (b"h", b"*", ("", b"*")),
    ],
)
def test_the_most_specific_that_fits_byte_by_byte(
    host: bytes, target: bytes, chosen: tuple[str, bytes]
) -> None:
    assert Destinations(b"", NAMED).chosen(host, target) == chosen


@pytest.mark.parametrize("target", [b"/eu/a", b"/gw2/eu/a", b"/gWw/a", b"*", b"//gw/a", b"/x/../gw/a"])
def test_what_lacks_the_listeners_prefix_is_not_served(target: bytes) -> None:
    with pytest.raises(NotServed):
        Destinations(b"/gw", NAMED).chosen(b"h", target)


def test_the_listeners_prefix_is_taken_off_first() -> None:
    assert Destinations(b"/gw", NAMED).chosen(b"h", b"/gw/eu/a") == ("any-eu", b"/a")
    assert Destinations(b"/gw", ()).chosen(b"h", b"/gw?x") == ("", b"/?x")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"/up/a?b#c", b"/gw/a?b#c"),
        (b"/a", b"/gw/a"),
        (b"/upper", b"/gw/upper"),
        (b"https://API.example:8443/up/a", b"/gw/a"),
        (b"http://api.example:8443", b"/gw/"),
        (b"https://api.example:8443?q", b"/gw/?q"),
        (b"https://api.example/up/a", b"https://api.example/up/a"),
        (b"https://other/up/a", b"https://other/up/a"),
        (b"//api.example:8443/up/a", b"//api.example:8443/up/a"),
        (b"a/b", b"a/b"),
        (b"../a", b"../a"),
        (b"", b""),
    ],
)
def test_a_location_of_the_upstreams_is_the_clients(said: bytes, told: bytes) -> None:
    got = relocated(Fields([(b"location", said)], b"Moved"), b"api.example:8443", b"/up", b"/gw")
    assert (list(got), got.reason) == ([(b"location", told)], b"Moved")


def test_a_location_never_names_another_authority_than_it_did() -> None:
    """Without a prefix of our own, `//x` behind the upstream's would be one."""
    assert list(relocated(Fields([(b"location", b"/up//evil/a")]), b"h", b"/up", b"")) == [
        (b"location", b"/evil/a")
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"a=1; Path=/up/x; Secure", b"a=1; Path=/gw/x; Secure"),
        (b"a=1;path=/;HttpOnly", b"a=1; Path=/gw/;HttpOnly"),
        (b"a=1; Domain=.Example; Path=/up", b"a=1; Path=/gw/"),
        (b"a=1; Domain=api.example", b"a=1"),
        (b"a=1; Domain=other", b"a=1; Domain=other"),
        (b"a=1; Domain=xapi.example", b"a=1; Domain=xapi.example"),
        (b"__Host-a=1; Secure; Path=/", b"__Host-a=1; Secure; Path=/"),
        (b"path=/up/x; Path=relative", b"path=/up/x; Path=relative"),
        (b"a=/up/x", b"a=/up/x"),
    ],
)
def test_a_cookie_of_the_upstreams_comes_back_to_the_gateway(said: bytes, told: bytes) -> None:
    fields = Fields([(b"x", b"/up/x"), (b"set-cookie", said)])
    assert list(relocated(fields, b"api.example:8443", b"/up", b"/gw")) == [
        (b"x", b"/up/x"),
        (b"set-cookie", told),
    ]
