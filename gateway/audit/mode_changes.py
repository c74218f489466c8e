"""
What an operator changed while the gateway ran: an event of its own on the audit log, among the calls that it
tells apart.
"""

from __future__ import annotations

import secrets

from gateway.audit.writer import Line


class ModeChanged(Line):
    """`by`: how it was asked for."""

    rule: str
    mode: str
    before: str
    by: str

    @classmethod
    def of(cls, rule: str, before: str, mode: str, by: str) -> ModeChanged:
        return cls("mode", "", secrets.token_hex(16), rule, mode, before, by)
