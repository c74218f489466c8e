"""
A schedule: who does what when, under which settings and with what luck. Plain values; pure.

Every value of a field is given out once (`s17`, `h4`), so that a filled one tells when it was read.
`s…` and `h…` may be filled; `x…` may not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

PREFIX = "/api/v2/conversations"
ALLOWED = {"state": tuple(f"s{n}" for n in range(600)), "held": tuple(f"h{n}" for n in range(600))}
UNFIT = frozenset("147")  # what no value may end with where bodies are checked
READ_TIMEOUT = 4.0  # seconds that the simulated transport waits for the head of a reply

Kind = Literal["patch", "write", "bulk", "read", "other"]
# How a message is lost: no connection; sent, but never received; done, but the connection breaks
# before the reply; done, but no reply ever comes.
Loss = Literal["refused", "request", "reply", "silence"]
# What is wrong with the reply to a GET.
Fault = Literal["html", "list", "garbage", "cut", "gzip", "large", "other", "missing", "ambiguous", "number"]
FAULTS: tuple[Fault, ...] = (
    "html",
    "list",
    "garbage",
    "cut",
    "gzip",
    "large",
    "other",
    "missing",
    "ambiguous",
    "number",
)


@dataclass(frozen=True, slots=True)
class About:
    """What a message is about. `source` is the target whose GET a fill would come from."""

    kind: Kind
    conversation: str | None = None
    participant: str | None = None
    source: str | None = None
    wanted: tuple[str, ...] = ()


_WEB = re.compile(PREFIX + r"/web/instances/([^/]+)(?:/participants/([^/]+))?")
_CALLS = re.compile(PREFIX + r"/calls/([^/]+)(?:/participants/([^/]+))?")
_BELOW = re.compile(PREFIX + r"/(?:web/instances/|calls/)?([^/]+)(?:/.*)?")
BULK = f"{PREFIX}/callbacks/bulk/disconnect"


@lru_cache(maxsize=1024)
def about(method: str, target: str) -> About:
    if target == BULK:
        return About("bulk")
    for template, wanted in ((_WEB, ("state",)), (_CALLS, ("state", "held"))):
        found = template.fullmatch(target)
        if found is not None:
            conversation, participant = found.groups()
            conversation = conversation.lower()
            source = target.partition("/participants/")[0]
            if method == "GET" and participant is None:
                return About("read", conversation, None, source, wanted)
            if method == "PATCH" and participant is not None:
                return About("patch", conversation, participant, source, wanted)
    below = _BELOW.fullmatch(target)
    if method == "GET" or below is None:
        return About("other")
    return About("write", below[1].lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The gateway's settings; durations in seconds."""

    max_age: float = 1.0
    settle: float = 2.0
    mode: str = "enforce"
    forwards: bool = False
    guarded: bool = False
    learn: bool = True
    lock_timeout: float = 5.0
    deadline: float = 15.0
    max_entries: int = 10_000
    retarget: Literal["none", "fill"] | None = None  # its `or`
    checks: Literal["before", "after"] | None = None  # when `validate` looks, which rejects


@dataclass(frozen=True, slots=True, kw_only=True)
class Climate:
    """
    The upstream's ways. `lag` is the longest that a replica lags, `faults` how much of what it does goes
    wrong, `strict` whether it wants a `state`, `absent` how often it has no operation for attributes. Of the
    gateway's own store, `store` is the longest that it takes, and `store_faults` how much of what it is asked
    fails.
    """

    lag: float = 0.0
    faults: float = 0.0
    slow: float = 0.0
    strict: bool = False
    absent: float = 0.0
    etags: bool = False
    store: float = 0.0
    store_faults: float = 0.0
    shuffled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """
    What becomes of one message. Durations in seconds: until a connection is had, there, back, and for the
    rest of the body.
    """

    wait: float = 0.0
    out: float = 0.01
    back: float = 0.01
    rest: float = 0.0
    lag: float = 0.0
    status: int | None = None
    retry_after: str | None = None
    loss: Loss | None = None
    fault: Fault | None = None
    applied_after: float = 0.0
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A client's call. It leaves after `leaves` seconds; its body comes in two pieces, `gap` apart."""

    at: float
    id: str
    caller: str
    method: str
    target: str
    body: bytes = b""
    leaves: float | None = None
    gap: float = 0.0
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def about(self) -> About:
        return about(self.method.upper(), self.target)

    @property
    def named(self) -> list[tuple[str, Any]]:
        """What the client itself says of the fields that are filled."""
        return [(name, value) for name, value in members(self.body) or () if name in self.about.wanted]

    @property
    def exempt(self) -> bool:
        return (b"cache-control", b"no-transform") in self.headers

    @property
    def changing(self) -> bool:
        """Whether it may change what is filled (S4): names it, can't be read, or is another unsafe call."""
        kind = self.about.kind
        if kind != "patch":
            return kind in {"write", "bulk"}
        return self.exempt or members(self.body) is None or bool(self.named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """At the upstream, by somebody who does not use the gateway."""

    at: float
    conversation: str
    participant: str
    field: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """The wall clock is set."""

    at: float
    seconds: float


Action = Request | Change | Jump


def authorising(caller: str) -> list[tuple[bytes, bytes]]:
    """C has the token of A, and a key of its own in a field that the gateway knows nothing of."""
    if caller == "C":
        return [(b"authorization", b"A"), (b"x-api-key", b"C")]
    return [(b"authorization", caller.encode())]


def caller_of(fields: Mapping[bytes, bytes]) -> str:
    return fields.get(b"x-api-key", fields.get(b"authorization", b"")).decode()


# The judges ask the same of a call again and again.
@lru_cache(maxsize=1024)
def members(body: bytes) -> list[tuple[str, Any]] | None:
    """Of a JSON object, in order and with repeats; None where the body is none."""
    try:
        document: Any = json.loads(body, object_pairs_hook=list)
    except ValueError:
        return None
    return document if isinstance(document, list) and body.lstrip().startswith(b"{") else None


def fits(body: bytes) -> bool:
    """Whether a JSON object has each name once, and no value that a check refuses."""
    given = members(body) or []
    values = [value for name, value in given if name in ALLOWED]
    once = len({name for name, _ in given}) == len(given)
    return once and not any(isinstance(value, str) and value[-1] in UNFIT for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """
    `fates`: what becomes of a request's messages upstream, by its id; the seed decides the rest. `first`: of
    the numbers of its values, which differ from those of the other upstream's.
    """

    seed: int
    actions: tuple[Action, ...]
    terms: Terms = Terms()
    climate: Climate = Climate()
    conversations: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    fates: Mapping[str, tuple[Fate, ...]] = field(default_factory=dict)
    first: int = 1


def patch(
    media: str, conversation: str, participant: str, members: Mapping[str, Any] | None = None, **rest: Any
) -> Request:
    """`members` None: a legacy client's body, without a state. `rest` is the Request's own."""
    body = json.dumps({"attributes": {"note": rest["id"]}} if members is None else members).encode()
    target = f"{PREFIX}/{media}/{conversation}/participants/{participant}"
    return Request(**{"caller": "A", "method": "PATCH", "target": target, "body": body, **rest})
