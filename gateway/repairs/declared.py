"""
How a body is encoded by what its header fields say: the content codings and the charset.
"""

from __future__ import annotations

import codecs
import re
from encodings import normalize_encoding
from encodings.aliases import aliases
from functools import lru_cache

from msgspec import Struct

from gateway.http import headers as h
from gateway.http.headers import Headers

# The codecs that are charsets (rot13, zip or unicode_escape are none) and have JSON's own characters
# where ASCII has them (shift_jisx0213 has a yen sign for the backslash).
CHARSETS = re.compile(
    r"utf_(8|(16|32)(_[lb]e)?)|ascii|latin_1|iso8859_([1-9]|1[013-6])|koi8_[ru]"
    r"|cp(125[0-8]|437|85[02578]|86[0-3569]|874|932|949|950)"
    r"|shift_jis|euc_(jp|kr)|iso2022_jp|gb2312|gbk|gb18030|big5(hkscs)?"
)
ALIASES = aliases | {"windows_31j": "cp932", "windows_874": "cp874"}  # IANA's names
UTF_8 = frozenset({None, "utf-8", "ascii", "unknown"})  # for a body that can be read as UTF-8


class Declared(Struct, frozen=True):
    """
    `codings`: the content codings in lower case, in the order applied. `charset`: the name of the codec for
    the charset parameter of Content-Type, None without one, `unknown` for a name that is no charset's.
    """

    codings: tuple[bytes, ...]
    charset: str | None

    @classmethod
    def of(cls, headers: Headers) -> Declared:
        # RFC 9110 section 8.4: `identity` is none; section 8.4.1: their names are case-insensitive.
        codings = [coding.lower() for coding in h.members(headers, b"content-encoding")]
        return cls(
            tuple(coding for coding in codings if coding != b"identity"),
            _charset(h.by_name(headers).get(b"content-type")),
        )

    @property
    def plain(self) -> bool:
        """Whether a body that can be read as UTF-8 is to be read so, uncompressed."""
        return not self.codings and self.charset in UTF_8


@lru_cache(maxsize=256)
def _charset(content_type: bytes | None) -> str | None:
    name = h.media_type(content_type)[1].get(b"charset") if content_type else None
    if name is None:
        return None
    if len(name) > 64:
        return "unknown"
    # Only a known name is looked up: Python keeps every name that it was ever asked for.
    text = normalize_encoding(name.decode("ascii", "replace")).lower()
    codec = ALIASES.get(text, text)
    return codecs.lookup(codec).name if CHARSETS.fullmatch(codec) else "unknown"
