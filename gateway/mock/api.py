"""
What a strict conversation API does with a call: values in, an Outcome or a Refused out.

Nothing here keeps anything, does I/O or reads a clock; `gateway/mock.py` does. An operation is a function
of a Call, listed in ROUTES; a way to be refused is a line in ERRORS. Two profiles differ in the PATCH:

    strict      the seed thread. `state` is required and set to what it says, `attributes` must be an object
                and is kept, and only `application/json` in UTF-8 will do. The 202 shows the participant.
    documented  the published API. `state` is an action: `connected` answers, `disconnected` hangs up; every
                field is checked before one is applied; the 202 is empty; 401 and 429. `attributes` is no
                field of this body and is ignored like any unknown one: no source says that it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast, get_args
from urllib.parse import unquote

from pydantic import ConfigDict

from gateway.http.headers import Headers, every, first

Medium = Literal["calls", "callbacks", "chats", "cobrowsesessions", "emails", "messages"]
# MediaParticipantRequest.state. A callback is also seen as `scheduled`; `active` is the seed thread's word.
Asked = Literal["alerting", "dialing", "contacting", "offering", "connected", "disconnected", "terminated",
                "converting", "uploading", "transmitting", "parked", "none"]  # fmt: skip
State = Literal[Asked, "scheduled", "active"]
COMMUNICATIONS = (
    *get_args(Medium),
    "internalMessages",
    "screenMonitorings",
    "screenshares",
    "socialExpressions",
    "videos",
)
FIELDS = {"state": str, "wrapup": dict, "wrapupSkipped": bool, "held": bool, "muted": bool, "confined": bool,
          "recording": bool, "resumeTime": str}  # fmt: skip
OVER = ("disconnected", "terminated")
NO_ACTIVE = "conversation.error.participant.no.active.conversations"

ERRORS: dict[str, tuple[int, str]] = {
    "bad.request": (400, "The request could not be understood by the server due to malformed syntax."),
    "invalid.value": (400, "Value [{0}] is not valid for field type [{1}]. Allowable values are: {2}"),
    "communication.state.required": (400, "Can only update a communication's state to disconnected."),
    "conversation.error.call.disconnected": (400, "The call is already disconnected."),
    "conversation.error.hold.alerting": (400, "An alerting participant can not be put on hold."),
    "conversation.error.participant.attribute.null": (400, "Cannot update attribute map to a null value."),
    "conversation.error.wrapup.code.required": (400, "A wrap-up code is required."),
    "postino.error.answer.not.alerting": (400, "Only alerting calls can be answered."),
    NO_ACTIVE: (400, "The participant has no active conversations."),
    "authentication.required": (401, "No authentication bearer token specified in authorization header."),
    "not.authorized": (403, "Access to Conversation {0} is forbidden."),
    "conversation.error.forbidden.not.active.participant": (403, "The participant is not active."),
    "not.found": (404, "The requested resource was not found."),
    "conversation.error.conversation.not.found": (404, "Conversation {0} was not found."),
    "conversation.error.not.conversation.participant": (404, "{0} is not a participant in the conversation."),
    "method.not.allowed": (405, "The resource does not support this method."),
    "conflict": (409, "The request conflicts with the state of the resource."),
    "precondition.failed": (412, "The resource has changed since it was read."),
    "request.entity.too.large": (413, "The request is larger than the server reads."),
    "unsupported.media.type": (415, "Unsupported media type, such as an incorrect Content-Type value."),
    "too.many.requests.retry.after": (
        429,
        "Rate limit exceeded the maximum. Retry the request in [{0}] seconds",
    ),
    "internal.server.error": (500, "The server encountered an unexpected condition."),
    "service.unavailable": (503, "The server is currently unavailable."),
    "request.timeout": (504, "The request timed out."),
}
# What one who has left answers to anything but a wrap-up, by medium; None is the generic view.
ENDED: dict[str | None, str] = {
    None: NO_ACTIVE,
    "callbacks": NO_ACTIVE,
    "calls": "conversation.error.call.disconnected",
    "chats": "conversation.error.forbidden.not.active.participant",
    "emails": "postino.error.answer.not.alerting",
}


class Refused(Exception):
    """An ErrorBody in the making: `values` go into the message's places, `field` into its details."""

    def __init__(
        self, code: str, *values: str, message: str = "", field: str = "", headers: Headers = ()
    ) -> None:
        super().__init__(code)
        self.status, text = ERRORS[code]
        self.message = message or text.format(*values)
        self.code, self.field, self.headers = code, field, headers

    def body(self, correlation: str) -> bytes:
        details = [{"errorCode": self.code, "fieldName": self.field}] if self.field else []
        told = {"message": self.message, "code": self.code, "status": self.status, "contextId": correlation}
        return json.dumps({**told, "details": details, "errors": []}).encode("ascii")


@dataclass(frozen=True, slots=True)
class Participant:
    """`tokens`: the bearer tokens that may see it; None: all. `fields`: held, muted, …, as they were set."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    state: State = "connected"
    purpose: str = "agent"
    attributes: Mapping[str, str] = field(default_factory=dict)
    tokens: frozenset[str] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class Effect(NamedTuple):
    status: int
    content: object = None
    changes: Mapping[str, Participant] | None = None


class Number(str):
    """A JSON number as it was written: 1e400 and 12345678901234567890 are legal, and no text."""


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True, slots=True)
class MockCall:
    """`participants` are those the caller may see, `shown` the same as a lagging GET shows them."""

    headers: Headers
    body: bytes
    profile: Profile
    media: Medium
    participants: Mapping[str, Participant]
    shown: Mapping[str, Participant]
    conversation: str
    medium: str | None = None  # None in the generic view
    participant: str = ""
    communication: str = ""

    def subject(self) -> Participant:
        if self.participant in self.participants:
            return self.participants[self.participant]
        documented = self.medium in (None, "calls", "callbacks")
        code = "conversation.error.not.conversation.participant" if documented else "not.found"
        raise Refused(code, self.participant)

    def document(self) -> dict[str, Any]:
        kinds = every(self.headers, b"content-type")
        encoded = first(self.headers, b"content-encoding") not in (None, b"identity")
        if encoded or len(kinds) != 1 or not self.profile.content_type.fullmatch(kinds[0]):
            raise Refused("unsupported.media.type")
        try:
            text = self.body.decode()
            value = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refused("bad.request") from error
        if not isinstance(value, dict):
            raise Refused("bad.request")
        return value


Operation: TypeAlias = Callable[[MockCall], Effect]


def state_asked(value: object, *more: str) -> State:
    allowed = (*get_args(Asked), *more)
    if value not in allowed:
        text = value if isinstance(value, str) else json.dumps(value)
        raise Refused("invalid.value", text, "state", ", ".join(allowed), field="state")
    return cast("State", value)


def update_as_the_thread(call: MockCall) -> Effect:
    document, before = call.document(), call.subject()
    if "state" not in document:
        raise Refused("bad.request", message="Invalid request body. Missing required property: 'state'")
    given = document.get("attributes", {})
    if not isinstance(given, dict):
        raise Refused("bad.request", message="Invalid request body. Property 'attributes' must be an object")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    state = state_asked(document["state"], "active")
    after = replace(before, state=state, attributes={**before.attributes, **texts})
    return Effect(202, in_media_view(call.participant, after), {call.participant: after})


def update_as_documented(call: MockCall) -> Effect:
    before = call.subject()
    if call.medium in ("messages", "cobrowsesessions") and call.body in (b"", b"null"):  # body not required
        return Effect(202)
    fields = {name: value for name, value in call.document().items() if name in FIELDS and value is not None}
    for name, value in fields.items():
        if type(value) is not FIELDS[name]:
            raise Refused("bad.request", field=name)
    if "state" in fields and state_asked(fields["state"]) not in ("connected", "disconnected"):
        raise Refused("bad.request", field="state")
    if before.state in OVER and fields.keys() - {"wrapup", "wrapupSkipped"}:
        raise Refused(ENDED.get(call.medium, "bad.request"))
    if before.state == "alerting" and fields.get("held"):
        raise Refused("conversation.error.hold.alerting", field="held")
    if "code" not in fields.get("wrapup", {"code"}):
        raise Refused("conversation.error.wrapup.code.required", field="wrapup")
    after = replace(before, state=fields.pop("state", before.state), fields={**before.fields, **fields})
    return Effect(202, None, {call.participant: after})


def update(call: MockCall) -> Effect:
    return call.profile.update(call)


def update_attributes(call: MockCall) -> Effect:
    """Merged into what is there: nothing published says whether the platform merges or replaces."""
    before, attributes = call.subject(), call.document().get("attributes")
    if attributes is None:
        raise Refused("conversation.error.participant.attribute.null", field="attributes")
    if not isinstance(attributes, dict) or any(type(value) is not str for value in attributes.values()):
        raise Refused("bad.request", field="attributes")
    after = replace(before, attributes={**before.attributes, **attributes})
    content = {"attributes": after.attributes} if call.medium else None
    return Effect(202, content, {call.participant: after})


def hang_up(call: MockCall) -> Effect:
    before = call.subject()
    if call.communication != f"{call.participant}-1":
        raise Refused("not.found")
    if call.document().get("state") != "disconnected":
        raise Refused("communication.state.required", field="state")
    return Effect(200, {}, {call.participant: replace(before, state="disconnected")})


def hand_over(call: MockCall) -> Effect:
    """The participant leaves, and another is alerted in its place."""
    before = call.subject()
    call.document()
    if before.state in OVER:
        raise Refused(ENDED.get(call.medium, "bad.request"))
    left, successor = replace(before, state="disconnected"), Participant("alerting", tokens=before.tokens)
    name = f"{call.participant}-{len(call.participants)}"
    return Effect(202, None, {call.participant: left, name: successor})


def end(call: MockCall) -> Effect:
    left = {name: replace(it, state="disconnected") for name, it in call.participants.items()}
    return Effect(202, None, left)


def show(call: MockCall) -> Effect:
    people = call.shown.items()
    if call.medium:
        listed = [in_media_view(name, it) for name, it in people]
    else:
        listed = [in_generic_view(name, it, call.media) for name, it in people]
    return Effect(200, {"id": call.conversation, "participants": listed})


def in_media_view(name: str, it: Participant) -> dict[str, object]:
    return {"id": name, "purpose": it.purpose, "state": it.state, "attributes": it.attributes, **it.fields}


def in_generic_view(name: str, it: Participant, media: Medium) -> dict[str, object]:
    """Without a state of its own: it stands with each communication."""
    communications: dict[str, list[object]] = {medium: [] for medium in COMMUNICATIONS}
    communications[media] = [{"id": f"{name}-1", "state": it.state, **it.fields}]
    return {"id": name, "purpose": it.purpose, "attributes": it.attributes, **communications}


class Profile(NamedTuple):
    update: Operation
    content_type: re.Pattern[bytes]
    needs_token: bool
    rate_limit: int  # requests a minute and token; 0: no limit


STRICT_TYPE = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset=("?)utf-8\1)?', re.IGNORECASE)
LENIENT_TYPE = re.compile(rb"application/json(?:[ \t]*;.*)?", re.IGNORECASE)
PROFILES = {
    "strict": Profile(update_as_the_thread, STRICT_TYPE, needs_token=False, rate_limit=0),
    "documented": Profile(update_as_documented, LENIENT_TYPE, needs_token=True, rate_limit=300),
}

MEDIA = "|".join(get_args(Medium))
GENERIC = rf"(?P<conversation>(?!(?:web|{MEDIA})(?:/|$))[^/]+)"
MEDIAL = rf"(?P<medium>web/instances|{MEDIA})/(?P<conversation>[^/]+)"
EITHER = rf"(?:(?P<medium>web/instances|{MEDIA})/)?{GENERIC}"
PARTICIPANT = "/participants/(?P<participant>[^/]+)"
ROUTES: dict[str, dict[str, Operation]] = {
    GENERIC: {"GET": show, "DELETE": end},
    MEDIAL: {"GET": show},
    f"{GENERIC}/disconnect": {"POST": end},
    f"{EITHER}{PARTICIPANT}": {"PATCH": update},
    f"{EITHER}{PARTICIPANT}/attributes": {"PATCH": update_attributes},
    f"{EITHER}{PARTICIPANT}/replace": {"POST": hand_over},
    f"{MEDIAL}{PARTICIPANT}/communications/(?P<communication>[^/]+)": {"PATCH": hang_up},
}


def route(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    """The operation and the names in the path."""
    for pattern, operations in ROUTES.items():
        if found := re.fullmatch("/api/v2/conversations/" + pattern, path):
            operation = operations.get("GET" if method == "HEAD" else method)
            if operation is None:
                raise Refused("method.not.allowed", headers=[(b"allow", ", ".join(operations).encode())])
            return operation, {name: unquote(value) for name, value in found.groupdict().items() if value}
    raise Refused("not.found")
