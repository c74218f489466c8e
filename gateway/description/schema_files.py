"""
A JSON Schema as it is read from its file, or from a place in one such as an OpenAPI document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.description import document


def read(reference: str) -> Any:
    """`schema.json`, `openapi.yaml#/components/schemas/Name`. Raises ValueError."""
    path, _, place = reference.partition("#")
    try:
        root = document.contents(Path(path))
    except document.NotADescription as error:
        raise ValueError(f"the schema cannot be read: {error}") from error
    if not place.strip("/"):
        return root
    if not isinstance(root, dict):
        raise ValueError(f"the schema cannot be read: expected an object in {path}")
    # The schema's own references are to places of the whole file.
    return {**root, "$ref": f"#{place}"}
