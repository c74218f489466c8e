"""
The `encoding` repair: a JSON object in another charset, under a BOM or compressed, becomes plain UTF-8.

The charset is the BOM's, else the declared one, else what the null bytes tell (RFC 4627 section 3).
Only a decoding that yields one JSON object counts; everything else is left as it came.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gateway.errors import BodyTooLarge
from gateway.http import headers as h
from gateway.http.content_coding import WINDOW_BITS, Damaged, inflate
from gateway.repairs import json_text
from gateway.repairs.call import Call, Change
from gateway.repairs.declared import Declared
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired
from gateway.repairs.json_text import ObjectText
from gateway.repairs.repair import Repair, RepairSettings, Stage

# The longer BOMs first: UTF-32's begins with UTF-16's.
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class EncodingSettings(RepairSettings):
    type: Literal["encoding"]

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield "encoding becomes UTF-8, uncompressed"


@dataclass(frozen=True, slots=True, eq=False)
class Encoding(Repair):
    settings = EncodingSettings
    stage = Stage.ENCODING
    once = True
    reads_body = False  # in a JSON object that is UTF-8, and declared as nothing else, it finds nothing

    limit: int

    @classmethod
    def of(cls, settings: EncodingSettings, limit: int, parameters: tuple[str, ...]) -> Encoding:
        return cls(limit)

    def diagnose(self, draft: Draft) -> Finding:
        """Raises BodyTooLarge for a body that is over the limit once it is inflated."""
        call = draft.call
        declared = call.headers.derived(Declared.of)
        if draft.document is not None and declared.plain:
            return None
        codings, charset = declared.codings, declared.charset
        if len(codings) > 1 or (codings and codings[0] not in WINDOW_BITS):
            return NotApplicable("content-encoding")
        body = call.body
        if codings:
            try:
                body = inflate(body, codings[0], self.limit)
            except Damaged:
                return NotApplicable("content-encoding-damaged")
        # In most charsets most bodies are the same text: it is read once.
        texts: dict[str, ObjectText | str] = {}
        if not codings and draft.reason != "not-utf-8":
            texts[body.decode("utf-8")] = draft.document or draft.reason
        for name, codec, plain in _readings(body, charset):
            try:
                text = plain.decode(codec)
                decoded = text.encode("utf-8")
            except UnicodeError:
                continue
            if text not in texts:
                texts[text] = _read(text)
            document = texts[text]
            if isinstance(document, str):
                continue
            if decoded == call.body and not codings:
                return None
            if len(decoded) > self.limit:
                raise BodyTooLarge(f"as UTF-8, the body is larger than limits.max_body ({self.limit} bytes)")
            before = ", ".join([*(coding.decode() for coding in codings), name])
            return Repaired(
                _as_utf8(call, decoded, charset),
                document,
                Change.of("encoding", before=before, after="utf-8"),
            )
        # In a wrong charset any text is `not-json`: the reason that another reading gave says more.
        reasons = [found for found in texts.values() if isinstance(found, str)]
        return NotApplicable(
            next((why for why in reasons if why != "not-json"), reasons[0] if reasons else "not-utf-8")
        )


def _read(text: str) -> ObjectText | str:
    """The object, or why it is none."""
    try:
        return json_text.read(text)
    except json_text.NotAnObject as error:
        return error.reason


def _readings(body: bytes, charset: str | None) -> Iterator[tuple[str, str, bytes]]:
    """Each way to read the body: its name for the record, the codec, and the bytes without a BOM."""
    for bom, codec in BOMS:
        if body.startswith(bom):
            yield f"{codec}-bom", codec, body[len(bom) :]
    if charset not in {None, "unknown"}:
        assert charset is not None
        # Declared without an order and without a BOM: little-endian is what .NET sends.
        yield charset, {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(charset, charset), body
    detected = json.detect_encoding(body)
    if detected.startswith(("utf-16-", "utf-32-")):
        yield detected, detected, body
    yield "utf-8", "utf-8", body


def _as_utf8(call: Call, body: bytes, charset: str | None) -> Call:
    headers = h.without(call.headers, {b"content-encoding"})
    kind = h.first(headers, b"content-type")
    if kind is not None and charset not in {None, "utf-8"}:
        plain = re.sub(rb'(?i)(;\s*charset\s*=\s*)("[^"]*"|[^;\s]*)', rb"\1utf-8", kind)
        headers = h.replaced(headers, b"content-type", plain)
    return Call(call.method, call.target, headers, body)
