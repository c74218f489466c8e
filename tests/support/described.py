"""
The conversation API's own description, as far as the project's facts tell it: OpenAPI 3.0, and the same in
the forms of other versions. It has the operations on participants, with their bodies and replies, and others
that change a participant's state. `state` is demanded here, as the seed thread reports it.
"""

from __future__ import annotations

import copy
from typing import Any

from tests.support.shipped import API, MEDIA

STATES = [
    "alerting", "dialing", "contacting", "offering", "connected", "disconnected", "terminated", "converting",
    "uploading", "transmitting", "parked", "none",
]  # fmt: skip
COMMUNICATIONS = (
    *MEDIA,
    "internalMessages",
    "screenMonitorings",
    "screenshares",
    "socialExpressions",
    "videos",
)
Described = dict[str, Any]


def _schema(name: str) -> Described:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Described) -> Described:
    return {"application/json": {"schema": schema}}


def _operation(
    body: Described | None = None, reply: Described | None = None, status: str = "202"
) -> Described:
    made: Described = {"responses": {status: {"description": "done"}}}
    if body is not None:
        made["requestBody"] = {"required": True, "content": _json(body)}
    if reply is not None:
        made["responses"] = {"200": {"description": "found", "content": _json(reply)}}
    return made


def _text(*values: str) -> Described:
    return {"type": "string", "enum": list(values)} if values else {"type": "string"}


def _listed(schema: Described) -> Described:
    return {"type": "array", "items": schema}


def _object(required: list[str] | None = None, /, **members: Described) -> Described:
    made: Described = {"type": "object", "properties": members}
    return made | ({"required": required} if required else {})


def openapi() -> Described:
    """A new one each time: a test may change it."""
    patch = {"patch": _operation(_schema("MediaParticipantRequest"))}
    attributes = {"patch": _operation(_schema("ParticipantAttributes"))}
    by_id, in_it = "/{conversationId}", "/participants/{participantId}"
    paths: Described = {
        f"{API}{by_id}": {"get": _operation(reply=_schema("Conversation")), "delete": _operation()},
        f"{API}{by_id}{in_it}": patch,
        f"{API}{by_id}{in_it}/attributes": attributes,
        f"{API}/web/instances{by_id}": {
            "get": _operation(reply=_schema("WebInstance")),
            "delete": _operation(),
        },
        f"{API}/web/instances{by_id}{in_it}": {"patch": _operation(_schema("WebParticipantRequest"))},
        f"{API}/calls{by_id}{in_it}/user/{{userId}}": patch,
    }
    for media in MEDIA:
        paths |= {
            f"{API}/{media}": {"post": _operation(_object(phoneNumber=_text()))},
            f"{API}/{media}{by_id}": {
                "get": _operation(reply=_schema("MediaConversation")),
                "patch": _operation(_schema("Conversation")),
            },
            f"{API}/{media}{by_id}{in_it}": patch,
            f"{API}/{media}{by_id}{in_it}/attributes": attributes,
            f"{API}/{media}{by_id}{in_it}/communications/{{communicationId}}": {
                "patch": _operation(_object(state=_text(*STATES)))
            },
            f"{API}/{media}{by_id}{in_it}/replace": {"post": _operation(_object(userId=_text()))},
        }
    merging = _object(phoneNumber=_text(), conversationIds=_listed(_text()))
    bulk = _object(disconnects=_listed(_object(conversationId=_text())))
    paths |= {
        f"{API}/calls": {"post": _operation(merging)},
        f"{API}/calls/user/{{userId}}": {"post": _operation(merging)},
        f"{API}/callbacks": {
            "post": _operation(_object(queueId=_text())),
            "patch": _operation(_object(conversationId=_text())),
        },
        f"{API}/callbacks/bulk/disconnect": {"post": _operation(bulk)},
        f"{API}/callbacks/bulk/update": {"post": _operation(bulk)},
        f"{API}{by_id}/disconnect": {"post": _operation()},
        f"{API}{by_id}{in_it}/replace": {"post": _operation(_object(userId=_text()))},
        f"{API}/participants/attributes/search": {"post": _operation(_object(query=_text()))},
        f"{API}/messaging/integrations/open": {"post": _operation(_object(name=_text()))},
        f"{API}/messages/inbound/open": {"post": _operation(_object(text=_text()))},
        "/api/v2/users/{userId}": {
            "get": _operation(reply=_schema("User")),
            "patch": _operation(_object(name=_text(), version={"type": "integer"})),
        },
    }
    request = {
        "wrapup": _object(code=_text()),
        "held": {"type": "boolean"},
        "muted": {"type": "boolean"},
    }
    medium = {name: _listed(_object(id=_text(), state=_text(*STATES))) for name in COMMUNICATIONS}
    return {
        "openapi": "3.0.3",
        "info": {"title": "Conversations", "version": "2"},
        "servers": [{"url": "https://api.example.test"}],
        "paths": paths,
        "components": {
            "schemas": {
                "MediaParticipantRequest": _object(["state"], state=_text(*STATES), **request),
                "WebParticipantRequest": _object(
                    ["state"], state=_text("active", *STATES), attributes={"type": "object"}, **request
                ),
                "ParticipantAttributes": _object(["attributes"], attributes={"type": "object"}),
                "MediaParticipant": _object(id=_text(), state=_text(*STATES), purpose=_text()),
                "WebParticipant": _object(id=_text(), state=_text("active", *STATES)),
                "Participant": _object(id=_text(), purpose=_text(), **medium),
                "MediaConversation": _object(id=_text(), participants=_listed(_schema("MediaParticipant"))),
                "WebInstance": _object(id=_text(), participants=_listed(_schema("WebParticipant"))),
                "Conversation": _object(
                    id=_text(), state=_text(*STATES), participants=_listed(_schema("Participant"))
                ),
                "User": _object(id=_text(), name=_text()),
            }
        },
    }


def swagger(described: Described) -> Described:
    """The same as Swagger 2.0."""
    made = copy.deepcopy(described)
    del made["openapi"], made["servers"]
    made |= {"swagger": "2.0", "host": "api.example.test", "schemes": ["https"], "basePath": "/"}
    made |= {"consumes": ["application/json"], "definitions": made.pop("components")["schemas"]}
    for item in made["paths"].values():
        for operation in item.values():
            body = operation.pop("requestBody", None)
            if body is not None:
                schema = body["content"]["application/json"]["schema"]
                operation["parameters"] = [{"in": "body", "name": "body", "required": True, "schema": schema}]
            for reply in operation["responses"].values():
                if "content" in reply:
                    reply["schema"] = reply.pop("content")["application/json"]["schema"]
    moved: Described = _moved(made)
    return moved


def _moved(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            name: one.replace("#/components/schemas/", "#/definitions/") if name == "$ref" else _moved(one)
            for name, one in node.items()
        }
    return [_moved(one) for one in node] if isinstance(node, list) else node


def openapi_3_1(described: Described) -> Described:
    """The same as OpenAPI 3.1, whose schemas are those of JSON Schema 2020-12."""
    made = copy.deepcopy(described)
    made["openapi"] = "3.1.0"
    made["servers"] = [{"url": "https://api.example.test/"}]
    request = made["components"]["schemas"]["MediaParticipantRequest"]
    request["properties"]["state"] = {"oneOf": [{"const": one} for one in STATES]}
    request["properties"]["held"] = {"type": ["boolean", "null"]}
    return made
