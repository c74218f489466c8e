"""
Which configuration the lines on the audit log belong to: an event of its own, at the start and whenever
another is in force.
"""

from __future__ import annotations

import secrets

from gateway import __version__
from gateway.audit.writer import Line


class ConfigurationInForce(Line):
    """`by`: what put it in force."""

    digest: str
    version: str
    by: str

    @classmethod
    def of(cls, digest: str, by: str) -> ConfigurationInForce:
        return cls("config", "", secrets.token_hex(16), digest, __version__, by)
