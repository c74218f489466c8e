"""Descriptions that are no good, and references that lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.description import document
from gateway.description.document import Description, NotADescription


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "neither JSON nor YAML"),
        ("a: [", "neither JSON nor YAML"),
        ("!!python/object:os.system {}", "neither JSON nor YAML"),
        ("[" * 100_000, "neither JSON nor YAML"),
        ('{"a":' * 100_000, "neither JSON nor YAML"),
        ("[]", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("openapi: 3.0.0\npaths: []", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("openapi: 4.0.0\npaths: {}", "expected Swagger 2.0 or OpenAPI 3.0 or 3.1, got 4.0.0"),
        ("swagger: 1.2\npaths: {}", "got 1.2"),
        ("paths: {}", "got None"),
    ],
)
def test_what_is_no_description_is_refused_with_what_was_expected(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "api"
    file.write_text(text)

    with pytest.raises(NotADescription, match=r"api: ") as refused:
        document.read(file)

    assert said in str(refused.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotADescription, match="cannot be read"):
        document.read(tmp_path / "missing")
    monkeypatch.setattr(document, "MOST_BYTES", 10)
    (tmp_path / "api").write_text("openapi: 3.0.0\npaths: {}")
    with pytest.raises(NotADescription, match="MiB at most"):
        document.read(tmp_path / "api")


def test_references_are_followed_within_the_file_and_nowhere_else() -> None:
    found = Description({"a/b": {"c%d": [{"$ref": "#/e"}]}, "e": {"f": 1}, "g": {"$ref": "#/g"}})

    assert found.resolved({"$ref": "#/a~1b/c%25d/0"}) == {"f": 1}
    for nowhere in ("#/missing", "#/e/f", "#/a~1b/c%25d/1", "#/g"):
        assert found.resolved({"$ref": nowhere}) == {}
    assert found.remote == set()
    for elsewhere in ("http://127.0.0.1:1/x", "other.yaml#/a", "file:///etc/passwd"):
        assert found.resolved({"$ref": elsewhere}) == {}
        assert elsewhere in found.remote
