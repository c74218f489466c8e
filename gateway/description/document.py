"""
A description as it is read from its file: JSON or YAML, bounded, and with the references that stay within it.

A reference to another file or host is never followed: it is remembered as `remote`, and what stands there is
not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from gateway.repairs import json_pointer

MOST_BYTES: Final = 64 * 2**20
HOPS: Final = 32  # references that lead to references

# libyaml's parser, where PyYAML was built with it, takes a tenth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Node = dict[str, Any]


class NotADescription(Exception):
    """What keeps a file from being read as a description of an API."""


class Description:
    """`root` is the whole of it."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.remote: set[str] = set()

    @property
    def version(self) -> str:
        """`2.0`, `3.0.3`, `3.1.0`."""
        return str(self.root.get("swagger") or self.root.get("openapi"))

    def resolved(self, node: Any) -> Node:
        """The object here, or that a reference leads to; an empty one where that is not known."""
        for _ in range(HOPS):
            if not isinstance(node, dict):
                return {}
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self._found(reference)
        return {}

    def _found(self, reference: str) -> Any:
        if not reference.startswith("#"):
            self.remote.add(reference)
            return None
        return json_pointer.at(self.root, reference[1:])


def contents(path: Path) -> Any:
    """The values in a file of JSON or YAML. Raises NotADescription."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise NotADescription(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise NotADescription(f"{path}: expected {MOST_BYTES // 2**20} MiB at most")
    try:
        return msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else yaml.load(data, _Loader)
    except (msgspec.DecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotADescription(f"{path}: neither JSON nor YAML: {' '.join(str(error).split())}") from error


def read(path: Path) -> Description:
    """Raises NotADescription."""
    root = contents(path)
    if not isinstance(root, dict) or not isinstance(root.get("paths"), dict):
        raise NotADescription(f"{path}: expected Swagger 2.0 or OpenAPI 3, with `paths`")
    document = Description(root)
    if not document.version.startswith(("2.0", "3.0", "3.1")):
        raise NotADescription(f"{path}: expected Swagger 2.0 or OpenAPI 3.0 or 3.1, got {document.version}")
    return document
