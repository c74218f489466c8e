"""The rules of the configuration that is shipped, and the paths of the published API that they are for."""

from __future__ import annotations

from functools import cache

from gateway import config
from gateway.rules import Rules
from tests.support.gateways import SHIPPED

API = "/api/v2/conversations"
P, C = "/participants/p1", "/communications/k1"
MEDIA = ("calls", "callbacks", "chats", "cobrowsesessions", "emails", "messages")


@cache
def shipped() -> Rules:
    loaded = config.load(SHIPPED, {})
    return Rules(loaded.rules, loaded.limits.max_body)
