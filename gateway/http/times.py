"""
The times that a reply's fields tell: Age and Retry-After. Pure.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

from gateway.http import headers as h
from gateway.http.headers import Headers


def age_of(headers: Headers) -> float:
    """What a cache in between says that its reply was old by when it sent it (RFC 9111 section 5.1)."""
    value = h.first(headers, b"age")
    first = value.partition(b",")[0].strip() if value is not None else b""
    return float(first) if first.isdigit() else 0.0


def retry_after(value: bytes | None, now: float) -> float | None:
    """Seconds from `now`, a Unix time (RFC 9110 section 10.2.3); None where there is no usable value."""
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # asctime's format names no zone (RFC 9110 section 5.6.7)
    return max(0.0, moment.timestamp() - now)
