"""
The conversation API of `api.py` as a server: `gateway mock`, the demo, the tests.

It keeps the conversations, and a ledger of every request as it came. `/_mock/*` is the tester's side door:
neither recorded nor limited: GET and DELETE /_mock/requests, POST /_mock/faults (a Fault as JSON), and
PUT /_mock/conversations/{id}/participants/{id} ({"state": …}: a change that somebody else makes).
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, cast

import uvicorn
import yaml
from cachetools import TTLCache
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.headers import Header, Headers, first, members
from gateway.mock.api import ERRORS, PROFILES, Medium, MockCall, Participant, Refused, route, show

EXACT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
MAX_BODY, MAX_LEDGER, MAX_ENTRIES, MAX_MADE = 16 << 20, 64 << 20, 10_000, 50_000


class Version(NamedTuple):
    number: int
    since: float
    participants: Mapping[str, Participant]


@dataclass(slots=True)
class Conversation:
    """Its versions, the newest last; older ones are kept only as long as a lagging GET may show them."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    media: Medium = "calls"
    participants: Mapping[str, Participant] = field(default_factory=dict)
    made_on_demand: bool = field(default=False, init=False)
    versions: list[Version] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.versions = [Version(1, -math.inf, self.participants)]

    def seen(self, at: float) -> Version:
        return next((it for it in reversed(self.versions) if it.since <= at), self.versions[0])

    def change(self, changes: Mapping[str, Participant], at: float, lag: float) -> None:
        number, _, participants = self.versions[-1]
        self.versions.append(Version(number + 1, at, {**participants, **changes}))
        while len(self.versions) > 1 and self.versions[1].since <= at - lag:
            del self.versions[0]

    def include(self, name: str) -> None:
        """Who is made on demand was there all along: in every version."""
        who = {name: Participant()}
        self.versions = [it._replace(participants={**who, **it.participants}) for it in self.versions]

    def states(self) -> dict[str, str]:
        return {name: participant.state for name, participant in self.versions[-1].participants.items()}


@dataclass(slots=True)
class Conversations:
    """Those listed; and on demand (by default only when none is listed) any other that is asked for.

    One made on demand has p1 (agent) and p2 (customer), connected; a call that names another participant adds
    it; it answers under every medium. The latest MAX_MADE are remembered.
    """

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    conversations: dict[str, Conversation] = field(default_factory=dict)
    on_demand: bool | None = None
    made: dict[str, Conversation] = field(default_factory=dict, init=False)

    def find(self, name: str, medium: str | None = None) -> Conversation | None:
        """None where there is no such conversation, or not in this medium."""
        if listed := self.conversations.get(name):
            return listed if medium in (None, "web/instances", listed.media) else None
        on_demand = not self.conversations if self.on_demand is None else self.on_demand
        plain = re.fullmatch(r"[A-Za-z0-9][\w.~-]{0,99}", name, re.ASCII)
        if name not in self.made and on_demand and plain:
            media = {None: "calls", "web/instances": "messages"}.get(medium, medium)
            people = {"p1": Participant(), "p2": Participant(purpose="customer")}
            self.made[name] = Conversation(cast("Medium", media), people)
            self.made[name].made_on_demand = True
            if len(self.made) > MAX_MADE:
                del self.made[next(iter(self.made))]
        return self.made.get(name)


class InvalidConversations(ValueError):
    """The file can't be used; the message has a line for each fault, with its place."""


def places(error: ValidationError) -> list[str]:
    found = [
        (".".join(map(str, fault["loc"])), fault["msg"], repr(fault["input"])) for fault in error.errors()
    ]
    return [f"{place or 'document'}: {message}, got {given:.60}" for place, message, given in found]


def load(path: Path) -> Conversations:
    """
    on_demand: false
    conversations:
      c1:
        media: calls
        participants:
          p1: {state: alerting, purpose: agent, attributes: {note: text}, tokens: [alice]}
    """
    try:
        document = yaml.safe_load(path.read_bytes())
        return TypeAdapter(Conversations).validate_python({} if document is None else document)
    except OSError as error:
        raise InvalidConversations(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidConversations(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise InvalidConversations("\n".join(f"{path}: {line}" for line in places(error))) from error


@dataclass(slots=True)
class Entry:
    """One request as it came; `before` and `after` are the true states of its conversation's participants."""

    number: int
    time: float
    method: str
    target: bytes
    headers: Headers
    body: bytes
    complete: bool  # False: the client went away amid the body, and nothing was done
    before: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None  # None until answered, and for ever if it never was

    def document(self) -> dict[str, object]:
        return {
            **asdict(self),
            "target": self.target.decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers],
            "body": self.body.decode("utf-8", "backslashreplace"),
            "body_base64": base64.b64encode(self.body).decode("ascii"),
        }


class Ledger:
    """The latest requests in order of arrival, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._arrival = asyncio.Event()
        self.clear()

    def clear(self) -> None:
        self.entries: deque[Entry] = deque()
        self.received = self._bytes = 0

    def add(
        self, at: float, method: str, target: bytes, headers: Headers, body: bytes, complete: bool
    ) -> Entry:
        self.received += 1
        self._bytes += len(body)
        self.entries.append(Entry(self.received, at, method, target, headers, body, complete))
        while len(self.entries) > MAX_ENTRIES or self._bytes > MAX_LEDGER:
            self._bytes -= len(self.entries.popleft().body)
        self._arrival.set()
        return self.entries[-1]

    async def arrived(self, count: int) -> None:
        """Returns once `count` requests have come since the start or the last `clear`."""
        while self.received < count:
            self._arrival.clear()
            await self._arrival.wait()

    def of(self, method: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.method == method]


class MockReply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Headers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    What happens to the next `times` requests with that `method` and with `path` in their target.

    `delay` passes before the call takes effect, `hold` after it and before the reply; a test may use events.
    With `status` this is the reply, and the call takes no effect unless it is `applied`. `reset` by itself is
    RST instead of a reply; with `status` the connection ends after head and body, one byte short.
    """

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    method: str | None = None
    path: str = ""
    times: Annotated[int, Field(ge=1)] = 1
    delay: float | asyncio.Event = 0.0
    hold: float | asyncio.Event = 0.0
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None  # None: the error body that such a status has, or nothing
    reset: bool = False
    applied: bool = False

    def reply(self, correlation: str) -> MockReply | None:
        if self.status is None:
            return None
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
        code = next((code for code, (status, _) in ERRORS.items() if status == self.status), None)
        wait = (first(pairs, b"retry-after") or b"").decode("latin-1")
        usual = Refused(code, wait, "", "").body(correlation) if code else b""
        return MockReply(self.status, usual if self.body is None else self.body, pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockSettings:
    profile: str = "strict"
    lag: float = 0.0  # seconds in which a GET still shows what was before
    rate_limit: int | None = None  # requests a minute and token; 0: no limit, None: the profile's
    etags: bool = False

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {self.profile!r}")
        if not 0 <= self.lag < math.inf or (self.rate_limit or 0) < 0:
            raise ValueError(f"lag and rate limit must be 0 or more, got {self.lag} and {self.rate_limit}")


class Mock:
    """The API as `app`; what it keeps, what it received, and what goes wrong next."""

    def __init__(
        self,
        conversations: Conversations,
        settings: MockSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.conversations = conversations
        self.ledger = Ledger()
        self.faults: list[Fault] = []
        self._settings, self._clock = settings, clock
        self._profile = PROFILES[settings.profile]
        self._rate_limit = self._profile.rate_limit if settings.rate_limit is None else settings.rate_limit
        # TTLCache counts from the insertion: a window is a minute from its first request.
        self._windows: TTLCache[bytes, list[float]] = TTLCache(10_000, 60, timer=clock)
        control = [
            Route("/requests", self._requests, methods=["GET", "DELETE"]),
            Route("/faults", self._script, methods=["POST"]),
            Route("/conversations/{conversation}/participants/{participant}", self._put, methods=["PUT"]),
        ]
        self.app = Starlette(
            routes=[Mount("/_mock", routes=control)],
            exception_handlers={Refused: complain, ValidationError: complain},
        )
        self.app.router.redirect_slashes = False
        self.app.router.default = self._receive  # all else, `OPTIONS *` too

    def state(self, conversation: str, participant: str) -> str | None:
        """The truth, whatever a GET shows."""
        found = self.conversations.find(conversation)
        return found.states().get(participant) if found else None

    def change(self, conversation: str, participant: str, /, **changes: object) -> None:
        """Somebody else's doing; a participant that isn't there comes in."""
        found = self.conversations.find(conversation)
        if found is None:
            raise Refused("not.found")
        before = found.versions[-1].participants.get(participant, Participant())
        after = TypeAdapter(Participant).validate_python({**asdict(before), **changes})
        found.change({participant: after}, self._clock(), self._settings.lag)

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, target, headers = scope["method"], scope["state"]["target"], scope["headers"]
        body, complete = await read(receive)
        entry = self.ledger.add(self._clock(), method, target, headers, body, complete)
        if not complete:
            return
        fault = self._next_fault(method, target.decode("latin-1"))
        correlation = str(uuid.uuid4())
        await pause(fault.delay)
        reply = fault.reply(correlation)
        if fault.applied or (reply is None and not fault.reset):
            answer = self._answer(entry, scope["raw_path"].decode("latin-1"), correlation)
            reply = reply or (None if fault.reset else answer)
        await pause(fault.hold)
        if reply:
            entry.status = reply.status
            await transmit(reply, correlation, send, short=fault.reset)
        if fault.reset:
            cut_off(scope["state"]["transport"], abruptly=reply is None)
            await receive()  # returns once the connection is known to be lost

    def _next_fault(self, method: str, target: str) -> Fault:
        for index, fault in enumerate(self.faults):
            if fault.method in (None, method) and fault.path in target:
                left = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                self.faults[index : index + 1] = left
                return fault
        return Fault()

    def _answer(self, entry: Entry, path: str, correlation: str) -> MockReply:
        rate: list[Header] = []
        try:
            authorization = first(entry.headers, b"authorization") or b""
            if self._profile.needs_token and not authorization.lower().startswith(b"bearer "):
                raise Refused("authentication.required")
            if self._rate_limit:
                rate = self._count(authorization)
            reply = self._perform(entry, path, authorization[7:].decode("latin-1"))
        except Refused as refused:
            reply = MockReply(refused.status, refused.body(correlation), refused.headers)
        return reply._replace(headers=[*reply.headers, *rate])

    def _count(self, authorization: bytes) -> list[Header]:
        now = self._clock()
        window = self._windows.setdefault(authorization, [0, now + 60])
        window[0] += 1
        count, seconds = int(window[0]), max(1, math.ceil(window[1] - now))
        values = {b"count": min(count, self._rate_limit), b"allowed": self._rate_limit, b"reset": seconds}
        headers = [(b"inin-ratelimit-" + name, b"%d" % value) for name, value in values.items()]
        if count > self._rate_limit:
            retry = (b"retry-after", b"%d" % seconds)
            raise Refused("too.many.requests.retry.after", str(seconds), headers=[*headers, retry])
        return headers

    def _perform(self, entry: Entry, path: str, token: str) -> MockReply:
        """Everything is checked before anything is applied."""
        if len(entry.body) > MAX_BODY:
            raise Refused("request.entity.too.large", headers=[(b"connection", b"close")])
        operation, names = route(entry.method, path)
        found = self.conversations.find(names["conversation"], names.get("medium"))
        if found is None:
            medial = operation is show and "medium" in names
            code = "conversation.error.conversation.not.found" if medial else "not.found"
            raise Refused(code, names["conversation"])
        if found.made_on_demand and names.get("participant", "p1") not in found.states():
            found.include(names["participant"])
        entry.before = entry.after = found.states()
        now, lag = self._clock(), self._settings.lag
        current, seen = found.versions[-1], found.seen(now - lag)
        people, shown = visible(current.participants, token), visible(seen.participants, token)
        if current.participants and not people:
            raise Refused("not.authorized", names["conversation"])
        call = MockCall(entry.headers, entry.body, self._profile, found.media, people, shown, **names)
        outcome = operation(call)
        tags: list[Header] = []
        if self._settings.etags:
            # RFC 9110 section 13.2.1: preconditions count only for what would succeed without them.
            matches = members(entry.headers, b"if-match")
            if matches and not {b"*", b'"%d"' % current.number} & set(matches):
                raise Refused("precondition.failed")
            tags = [(b"etag", b'"%d"' % seen.number)] if operation is show else []
            unless = {tag.removeprefix(b"W/") for tag in members(entry.headers, b"if-none-match")}
            if tags and unless & {b"*", tags[0][1]}:
                return MockReply(304, headers=tags)
        if outcome.changes:
            found.change(outcome.changes, now, lag)
            entry.after = found.states()
        body = b"" if outcome.content is None else json.dumps(outcome.content).encode("ascii")
        return MockReply(outcome.status, body, tags)

    async def _requests(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.ledger.clear()
            return Response(status_code=204)
        return JSONResponse([entry.document() for entry in self.ledger.entries])

    async def _script(self, request: Request) -> Response:
        self.faults.append(TypeAdapter(Fault).validate_json(await request.body()))
        return Response(status_code=204)

    async def _put(self, request: Request) -> Response:
        changes = TypeAdapter(dict[str, object]).validate_json(await request.body())
        self.change(request.path_params["conversation"], request.path_params["participant"], **changes)
        return Response(status_code=204)


async def complain(_: Request, error: Exception) -> Response:
    text = "; ".join(places(error)) if isinstance(error, ValidationError) else ""
    refused = error if isinstance(error, Refused) else Refused("bad.request", message=text)
    return Response(refused.body(""), refused.status, media_type="application/json")


def visible(people: Mapping[str, Participant], token: str) -> dict[str, Participant]:
    return {name: it for name, it in people.items() if it.tokens is None or token in it.tokens}


async def pause(length: float | asyncio.Event) -> None:
    await (length.wait() if isinstance(length, asyncio.Event) else asyncio.sleep(length))


async def read(receive: Receive) -> tuple[bytes, bool]:
    """The body, as far as it is ever read, and whether the client stayed for it."""
    body, more = bytearray(), True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body), False
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body), True


async def transmit(reply: MockReply, correlation: str, send: Send, short: bool) -> None:
    headers = [
        *reply.headers,
        (b"inin-correlation-id", correlation.encode("ascii")),
        (b"cache-control", b"no-cache, no-store, must-revalidate"),
    ]
    if reply.body and first(headers, b"content-type") is None:
        headers.append((b"content-type", b"application/json"))
    if reply.status not in (204, 304) and first(headers, b"content-length") is None:
        headers.append((b"content-length", b"%d" % (len(reply.body) + short)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": short})


def cut_off(transport: asyncio.Transport, abruptly: bool) -> None:
    if abruptly:  # closing then sends RST, which may also destroy what the client has not read yet
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


class MockConnection(HttpToolsProtocol):
    """uvicorn's own; the app also gets the target as it was sent, and the transport, which a reset needs."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self.scope["state"]["target"] = self.url


def server(mock: Mock, host: str = "127.0.0.1", port: int = 9000) -> uvicorn.Server:
    """`server(mock).run()` serves until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        mock.app,
        host=host,
        port=port,
        http=MockConnection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)
