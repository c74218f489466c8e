"""The `encoding` repair: charsets, byte order marks and compression, within the limit."""

from __future__ import annotations

import codecs
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge
from tests.http.test_content_coding import raw_deflate
from tests.support.gateways import BODY, FILLED
from tests.support.json_texts import ObjectText, objects_without_state
from tests.support.repairing import JSON, LIMIT, built, found, kind, patient, sent, untouched

ENCODING = {"type": "encoding"}
TEXT = '{"attributes": {"note": "Gr\u00fc\u00dfe"}}'
JAPANESE = (
    '{"attributes": {"note": "\u6771\u4eac\u30bd\u8868"}}'  # with a backslash as second byte in Shift_JIS
)
CODECS = {
    "utf-8": ("utf-8", TEXT),
    "UTF8": ("utf-8", TEXT),
    "utf-16": ("utf-16-le", TEXT),
    "utf-16le": ("utf-16-le", TEXT),
    "UTF-16BE": ("utf-16-be", TEXT),
    "utf-32": ("utf-32-le", TEXT),
    "utf-32be": ("utf-32-be", TEXT),
    "ISO-8859-1": ("latin-1", TEXT),
    "latin1": ("latin-1", TEXT),
    "iso-8859-15": ("iso-8859-15", TEXT.replace("\u00fc", "\u20ac")),
    "windows-1252": ("cp1252", TEXT.replace("\u00fc", "\u20ac\u201c")),
    "cp1252": ("cp1252", TEXT),
    "windows-1251": ("cp1251", TEXT.replace("Gr\u00fc\u00dfe", "\u041f\u0440\u0438")),
    "koi8-r": ("koi8-r", TEXT.replace("Gr\u00fc\u00dfe", "\u041f\u0440\u0438")),
    "koi8-u": ("koi8-u", TEXT.replace("Gr\u00fc\u00dfe", "\u0457")),
    "ibm850": ("cp850", TEXT),
    "windows-874": ("cp874", TEXT.replace("Gr\u00fc\u00dfe", "\u0e01")),
    "shift_jis": ("shift_jis", JAPANESE),
    "Shift-JIS": ("shift_jis", JAPANESE),
    "windows-31j": ("cp932", JAPANESE),
    "cp932": ("cp932", JAPANESE.replace("\u6771", "\u2460")),
    "euc-jp": ("euc_jp", JAPANESE),
    "iso-2022-jp": ("iso2022_jp", JAPANESE),
    "euc-kr": ("euc_kr", TEXT.replace("Gr\u00fc\u00dfe", "\ud55c")),
    "gb2312": ("gb2312", JAPANESE.replace("\u6771\u4eac\u30bd\u8868", "\u4e2d")),
    "gbk": ("gbk", JAPANESE),
    "gb18030": ("gb18030", JAPANESE.replace("\u6771", "\U0001f600")),
    "big5": ("big5", JAPANESE.replace("\u30bd", "")),
    "us-ascii": ("ascii", BODY.decode()),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("quoted", ["{}", '"{}"'])
def test_a_declared_charset_becomes_utf_8(name: str, quoted: str) -> None:
    codec, text = CODECS[name]
    body = text.encode(codec)

    call = sent(body, kind(f"application/json; charset={quoted.format(name)}"))

    assert call.body == text.replace("{", '{"state":"connected",', 1).encode()
    assert [pair for pair in call.headers if pair[0] == b"content-type"] == [JSON]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_charset_under_a_compression_becomes_utf_8_too(name: str, coding: str) -> None:
    codec, text = CODECS[name]
    body = (gzip.compress if coding == "gzip" else zlib.compress)(text.encode(codec))

    diagnosis = found(
        body, kind(f"text/plain; charset={name}"), (b"content-encoding", coding.encode()), by=built(ENCODING)
    )

    assert diagnosis.call.body == text.encode()
    (change,) = diagnosis.changes
    assert change.record["before"].startswith(f"{coding}, ")
    assert dict(diagnosis.call.headers) == {
        b"content-type": b"text/plain; charset=utf-8"
        if not codec.startswith(("utf-8", "ascii")) or codec == "ascii"
        else f"text/plain; charset={name}".encode(),
        b"content-length": b"%d" % len(body),
    }


UNICODE = ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
MARKS = dict(
    zip(
        UNICODE,
        [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE],
        strict=True,
    )
)


@patient
@given(
    objects_without_state,
    st.sampled_from(UNICODE),
    st.booleans(),
    st.sampled_from(
        [None, "utf-8", "utf-16", "utf-16le", "utf-16be", "utf-32", "latin-1", "shift_jis", "nonsense"]
    ),
)
def test_what_a_mark_says_counts_before_what_is_declared(
    written: ObjectText, codec: str, zipped: bool, declared: str | None
) -> None:
    body = MARKS[codec] + written.text.encode(codec)
    headers = [kind(f"application/json; charset={declared}" if declared else "application/json")]
    if zipped:
        body, headers = gzip.compress(body, mtime=0), [*headers, (b"content-encoding", b"gzip")]

    diagnosis = found(body, *headers)

    assert diagnosis.call.body == written.text.encode()
    assert diagnosis.changes[0].record == {
        "repair": "encoding",
        "before": ("gzip, " if zipped else "") + f"{codec}-bom",
        "after": "utf-8",
    }


@patient
@given(objects_without_state, st.sampled_from(UNICODE), st.sampled_from([None, "utf-8", "nonsense"]))
def test_without_a_mark_and_a_declaration_the_null_bytes_tell(
    written: ObjectText, codec: str, declared: str | None
) -> None:
    """RFC 4627 section 3: a JSON text begins with two characters of ASCII."""
    body = written.text.encode(codec)
    headers = [kind(f"application/json; charset={declared}")] if declared else []

    assert found(body, *headers).call.body == written.text.encode()


@patient
@given(objects_without_state, st.sampled_from(["utf-16-be", "utf-32-le", "utf-32-be", "utf-8"]))
def test_a_wrongly_declared_utf_16_is_read_for_what_it_is(written: ObjectText, codec: str) -> None:
    diagnosis = found(written.text.encode(codec), kind("application/json; charset=utf-16"))

    assert diagnosis.call.body == written.text.encode()


@patient
@given(objects_without_state, st.sampled_from(["utf-8", "ascii", "us-ascii", "nonsense", "utf-7", "rot13"]))
def test_plain_utf_8_is_not_recoded_for_a_declaration_that_cannot_be_meant(
    written: ObjectText, declared: str
) -> None:
    diagnosis = found(written.text.encode(), kind(f"application/json; charset={declared}"))

    assert [change.repair for change in diagnosis.changes] == ["content_type"]
    assert diagnosis.call.body == written.text.encode()


def test_a_declared_charset_is_believed_where_the_bytes_would_be_utf_8_too() -> None:
    """RFC 9110 section 8.3.2: the sender says what it is."""
    body = '{"a":"\u00e9"}'.encode()

    assert found(body, kind("text/plain; charset=latin-1")).call.body == '{"a":"\u00c3\u00a9"}'.encode()


NO_CHARSETS = [
    "rot13", "rot_13", "zip", "zlib", "bz2", "hex", "base64", "base64_codec", "uu", "quopri",
    "unicode_escape", "unicode-escape", "raw_unicode_escape", "idna", "punycode", "undefined", "utf-7",
    "utf-8-sig", "mbcs", "oem", "palmos", "charmap", "shift_jisx0213", "shift_jis_2004", "cp864", "cp875",
    "cp037", "hz", "nonsense", "", "..", "../x", "encodings.rot_13", "utf-8\0", "\xff", "iso8859-12",
    "iso8859-999", "x" * 30000,
]  # fmt: skip
PLAIN = '{"a":true}'
ENCODED = [
    codecs.encode(PLAIN, "rot13").encode(),
    codecs.encode(PLAIN.encode(), "hex"),
    codecs.encode(PLAIN.encode(), "base64"),
    codecs.encode(PLAIN.encode(), "zip"),
    codecs.encode(PLAIN.encode(), "bz2"),
    PLAIN.encode("cp037"),
    b"+AHsAIgBhACIAOgAxAH0-",
    rb"\x7b\x22a\x22:1}",
]


@pytest.mark.parametrize("name", NO_CHARSETS, ids=lambda name: repr(name[:20]))
def test_what_is_no_charset_is_never_used_as_one(name: str) -> None:
    declared = (b"content-type", b"text/plain; charset=" + name.encode("latin-1"))
    escaped = rb'{"a":"\u0041\\n~%"}'

    assert sent(BODY, declared).body == FILLED
    assert found(escaped, declared).call.body == escaped
    for body in ENCODED:
        assert untouched(body, declared) in {"not-json", "not-utf-8"}


def test_a_name_that_is_no_charset_is_not_even_looked_up() -> None:
    """Python keeps each name that it is asked for, and imports a module by it: both forever."""
    asked: list[str] = []

    def search(name: str) -> None:
        asked.append(name)

    codecs.register(search)
    try:
        for n in range(100):
            found(BODY, kind(f"text/plain; charset=made-up-{n}"))
    finally:
        codecs.unregister(search)
    assert asked == []


def test_every_charset_that_is_known_can_be_read_and_has_ascii_where_json_needs_it() -> None:
    ascii_text = "".join(map(chr, range(0x20, 0x7F)))
    for name in CODECS:
        codec = CODECS[name][0]
        encoded = ascii_text.encode(codec)
        assert encoded.decode(codec) == ascii_text
        if not codec.startswith("utf-"):
            assert encoded == ascii_text.encode()


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("application/json; charset=utf-16", "application/json; charset=utf-8"),
        (
            "application/json; Charset = 'x'; charset=utf-16",
            "application/json; Charset = utf-8; charset=utf-8",
        ),
        ('text/plain; a=b;charset="utf-16";c=d', "text/plain; a=b;charset=utf-8;c=d"),
        ("text/plain", "text/plain"),
        (None, None),
    ],
)
def test_without_the_other_repair_only_the_charset_of_the_type_follows(
    was: str | None, becomes: str | None
) -> None:
    diagnosis = found(
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), *([kind(was)] if was else []), by=built(ENCODING)
    )

    assert diagnosis.call.body == TEXT.encode()
    assert dict(diagnosis.call.headers).get(b"content-type") == (becomes.encode() if becomes else None)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(BODY, mtime=0)),
        (b"GZip", gzip.compress(BODY, mtime=0)),
        (b"x-gzip", gzip.compress(BODY, mtime=0)),
        (b"identity, gzip", gzip.compress(BODY, mtime=0)),
        (b" gzip ,", gzip.compress(BODY, mtime=0)),
        (b"deflate", zlib.compress(BODY)),
        (b"deflate", raw_deflate(BODY)),
        (b"gzip", gzip.compress(codecs.BOM_UTF8 + BODY, mtime=0)),
    ],
)
def test_a_compressed_body_leaves_plain_with_its_length_and_without_its_coding(
    coding: bytes, body: bytes
) -> None:
    call = sent(body, JSON, (b"content-encoding", coding))

    assert call.body == FILLED
    assert call.headers == [JSON]


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": raw_deflate,
}
ZIPPED = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "reason"),
    [
        (b"gzip", BODY, "content-encoding-damaged"),
        (b"gzip", b"", "content-encoding-damaged"),
        (b"gzip", ZIPPED[:-1], "content-encoding-damaged"),
        (b"gzip", ZIPPED[:12], "content-encoding-damaged"),
        (b"gzip", ZIPPED + b"\0", "content-encoding-damaged"),
        (b"gzip", ZIPPED * 2, "content-encoding-damaged"),
        (b"gzip", ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "content-encoding-damaged"),
        (b"gzip", zlib.compress(BODY), "content-encoding-damaged"),
        (b"deflate", ZIPPED, "content-encoding-damaged"),
        (b"deflate", zlib.compress(BODY)[:-1], "content-encoding-damaged"),
        (b"deflate", zlib.compress(BODY) + b"x", "content-encoding-damaged"),
        (b"deflate", raw_deflate(BODY)[:-1], "content-encoding-damaged"),
        (b"deflate", raw_deflate(BODY) + b"x", "content-encoding-damaged"),
        (b"deflate", BODY, "content-encoding-damaged"),
        (b"gzip, gzip", gzip.compress(ZIPPED, mtime=0), "content-encoding"),
        (b"deflate, gzip", gzip.compress(zlib.compress(BODY), mtime=0), "content-encoding"),
        (b"br", b"\x0b\x02\x80{}\x03", "content-encoding"),
        (b"br", BODY, "content-encoding"),
        (b"zstd", BODY, "content-encoding"),
        (b"compress", BODY, "content-encoding"),
        (b"aes128gcm", BODY, "content-encoding"),
        (b"gzip;q=1", ZIPPED, "content-encoding"),
        (b"gzip", gzip.compress(b"[1]", mtime=0), "not-an-object"),
        (b"gzip", gzip.compress(b"state=connected", mtime=0), "not-json"),
        (b"gzip", gzip.compress(b"", mtime=0), "empty-body"),
        (b"gzip", gzip.compress(b'{"a":"\xe9"}', mtime=0), "not-utf-8"),
        (b"gzip", gzip.compress(ZIPPED, mtime=0), "not-utf-8"),
    ],
)
def test_a_compressed_body_that_cannot_be_read_is_left_as_it_is(
    coding: bytes, body: bytes, reason: str
) -> None:
    assert untouched(body, JSON, (b"content-encoding", coding)) == reason


def test_codings_on_several_lines_are_one_list() -> None:
    assert untouched(ZIPPED, JSON, (b"content-encoding", b"gzip"), (b"content-encoding", b"gzip")) == (
        "content-encoding"
    )


@pytest.mark.parametrize("coding", [b"identity", b"", b"identity, identity"])
def test_a_coding_that_is_none_stays_and_keeps_nothing_from_being_repaired(coding: bytes) -> None:
    call = sent(BODY, JSON, (b"content-encoding", coding))

    assert call.body == FILLED
    assert (b"content-encoding", coding) in call.headers


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_a_body_may_be_as_large_as_the_limit_once_it_is_inflated(coding: str, size: int) -> None:
    plain = b'{"a":"' + b"x" * (size - 8) + b'"}'
    body = COMPRESSED[coding](plain)
    headers = [JSON, (b"content-encoding", b"gzip" if coding == "gzip" else b"deflate")]

    if size > LIMIT:
        with pytest.raises(BodyTooLarge, match=r"limits\.max_body"):
            found(body, *headers)
    else:
        assert found(body, *headers).call.body == plain


def test_a_body_that_grows_over_the_limit_as_utf_8_is_refused() -> None:
    body = ('{"a":"' + "\u6771" * (LIMIT // 3) + '"}').encode("utf-16-le")
    assert len(body) < LIMIT

    with pytest.raises(BodyTooLarge, match=r"limits\.max_body"):
        found(body, kind("application/json; charset=utf-16"))


@pytest.mark.parametrize("wbits", [16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_a_bomb_is_refused_and_costs_no_more_memory_than_the_limit(wbits: int) -> None:
    stream = zlib.compressobj(wbits=wbits)
    bomb = b"".join(stream.compress(bytes(2**20)) for _ in range(64)) + stream.flush()
    coding = b"gzip" if wbits > zlib.MAX_WBITS else b"deflate"

    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            found(bomb, JSON, (b"content-encoding", coding))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT + len(bomb)


def test_a_bomb_within_a_bomb_is_not_even_opened() -> None:
    bomb = gzip.compress(gzip.compress(bytes(2**24), mtime=0))

    assert untouched(bomb, JSON, (b"content-encoding", b"gzip, gzip")) == "content-encoding"
    assert untouched(bomb, JSON, (b"content-encoding", b"gzip")) == "not-utf-8"
