"""
The operations that a description lists, each in one form whatever the version of the description.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.description.document import Description, Node
from gateway.http.grammar import SAFE_METHODS
from gateway.paths import Routes, Template, parse

METHODS: Final = ("get", "head", "options", "post", "put", "patch", "delete")
NO_SCHEMA: Final[Node] = {}


class Operation(Struct, frozen=True, eq=False):
    """
    `path` is a template as rules have it. `takes` are the media types of its body, of which `body` is the
    schema for JSON; `shows` is that of the reply. An empty schema says nothing.
    """

    method: str
    path: str
    template: Template
    deprecated: bool
    takes: tuple[str, ...]
    body: Node
    shows: Node

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class Api:
    """A description's operations. `unread` are paths that no rule could name."""

    def __init__(self, document: Description) -> None:
        self.document = document
        self.unread: list[str] = []
        self.operations = tuple(self._operations())
        self._routes: Routes[Operation] = Routes()
        for one in self.operations:
            self._routes.add(one.method, one.template, one)

    @cached_property
    def origin(self) -> str | None:
        """Scheme and host of the API, where the description says."""
        root = self.document.root
        if isinstance(root.get("host"), str):
            schemes = root.get("schemes")
            scheme = schemes[0] if isinstance(schemes, list) and schemes else "https"
            return f"{scheme}://{root['host']}"
        parts = urlsplit(self._server)
        return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else None

    def at(self, method: str, path: bytes) -> Operation | None:
        found = self._routes.match(method, path)
        return None if found is None else found.value

    @cached_property
    def _server(self) -> str:
        servers = self.document.root.get("servers")
        first = self.document.resolved(servers[0]) if isinstance(servers, list) and servers else {}
        return str(first.get("url", ""))

    def _operations(self) -> Iterator[Operation]:
        root = self.document.root
        prefix = str(root.get("basePath") or urlsplit(self._server).path).rstrip("/")
        for name, item in root["paths"].items():
            path = prefix + re.sub(r"\{([^{}/]+)\}", lambda one: "{" + _word(one[1]) + "}", str(name))
            here = self.document.resolved(item)
            try:
                template = parse(path)
            except ValueError:
                self.unread.append(str(name))
                continue
            for method in METHODS:
                if isinstance(here.get(method), dict):
                    yield self._operation(method, path, template, here, here[method])

    def _operation(self, method: str, path: str, template: Template, here: Node, node: Node) -> Operation:
        takes, body = self._body(here, node)
        return Operation(
            method.upper(), path, template, node.get("deprecated") is True, takes, body, self._reply(node)
        )

    def _body(self, here: Node, node: Node) -> tuple[tuple[str, ...], Node]:
        resolved = self.document.resolved
        content = resolved(node.get("requestBody")).get("content")
        if isinstance(content, dict):
            return tuple(content), _json_schema(content)
        for one in [*_listed(node.get("parameters")), *_listed(here.get("parameters"))]:
            parameter = resolved(one)
            if parameter.get("in") == "body":
                takes = node.get("consumes", self.document.root.get("consumes"))
                return tuple(map(str, _listed(takes))), resolved(parameter.get("schema"))
        return (), NO_SCHEMA

    def _reply(self, node: Node) -> Node:
        replies = node.get("responses")
        if not isinstance(replies, dict):
            return NO_SCHEMA
        by_status = {str(status): reply for status, reply in replies.items()}
        for status in ("200", "2XX", "default"):
            reply = self.document.resolved(by_status.get(status))
            if isinstance(reply.get("content"), dict):
                return _json_schema(reply["content"])
            if isinstance(reply.get("schema"), dict):
                return self.document.resolved(reply["schema"])
        return NO_SCHEMA


def is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def is_unsafe(operation: Operation) -> bool:
    return operation.method.encode() not in SAFE_METHODS


def _json_schema(content: Node) -> Node:
    for media_type, one in content.items():
        if is_json(str(media_type)) and isinstance(one, dict) and isinstance(one.get("schema"), dict):
            schema: Node = one["schema"]
            return schema
    return NO_SCHEMA


def _listed(node: Any) -> list[Any]:
    return node if isinstance(node, list) else []


def _word(name: str) -> str:
    """A parameter's name as rules may have it."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return word if re.match(r"[A-Za-z_]", word) else f"_{word}"
