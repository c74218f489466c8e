"""A fingerprint says where each field begins and ends: no caller can write another's name (S6)."""

from __future__ import annotations

import pytest

from gateway.state.credentials import CredentialFingerprints


# What would stand between two fields if they were only strung together, in one way or another.
@pytest.mark.parametrize(
    "between", [b"", b"cookie", b"cookie=", b"\ncookie:", b"\n6:cookie=", b"\n6:cookie=1:"]
)
def test_a_value_that_spells_two_fields_is_not_these_two(between: bytes) -> None:
    credentials = CredentialFingerprints("http://upstream", key=b"k" * 32)
    spelled = credentials.of([(b"authorization", b"x" + between + b"y")])

    assert spelled != credentials.of([(b"authorization", b"x"), (b"cookie", b"y")])
