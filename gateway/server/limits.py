"""
What one client may take of the gateway, and what the connections of one server have counted together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.http.headers import Fields
from gateway.http.request_parser import HeadLimits
from gateway.http.slots import Values
from gateway.server.access_log import Access
from gateway.server.held_back import HeldBack
from gateway.server.refusal_log import RefusalLog
from gateway.server.stalled_replies import StalledReplies
from gateway.server.turn_writes import TurnWrites
from gateway.server.unsent_replies import UnsentReplies


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(HeadLimits):
    """Durations in seconds."""

    max_connections: int = 20_000
    max_in_flight: int = 1_000
    max_lingering: int = 256  # connections turned away that are still to read why
    makes_room: bool = False  # past max_connections, who has said nothing longest goes, not who comes
    overload_pause: float = 0.5  # after a refusal for overload, before its client is read again
    # For a whole head; on a new connection, from the connect to the head's first byte too.
    head_timeout: float = 10.0
    body_timeout: float = 10.0  # between two pieces of a body that the application waits for
    keep_alive: float = 60.0  # between a reply and the next request
    write_timeout: float = 60.0  # without the client taking a byte of what is ready for it
    min_rate: int = 500  # bytes a second, of a body or a reply, while the client is waited for. 0: any
    rate_window: float = 10.0  # of such waiting, over which min_rate is the average


def by_address(_headers: Fields, _values: Values, address: str, _target: bytes, _certificate: bytes) -> str:
    return address


@dataclass(slots=True)
class ServerStats:
    """What the connections of one server share. The counters' keys: a refusal's slug, an abort's cause."""

    refused: Counter[str] = field(default_factory=Counter)
    aborted: Counter[str] = field(default_factory=Counter)
    turned_away: int = 0  # connections over the limit that are still to read why
    awaiting: int = 0  # applications that wait for their client's body
    stalled: StalledReplies = field(default_factory=StalledReplies)
    unsent: UnsentReplies = field(default_factory=UnsentReplies)
    in_flight: int = 0  # requests without their whole reply
    caller_of: Callable[[Fields, Values, str, bytes, bytes], str] = by_address
    in_flight_of: Counter[str] = field(
        default_factory=Counter
    )  # of those that began while many were in flight
    held_back: HeldBack = field(default_factory=HeldBack)
    access: Callable[[Access], None] | None = None  # told of each request when it is over
    log: RefusalLog = field(default_factory=RefusalLog)
    stopping: bool = False
    together: TurnWrites = field(default_factory=TurnWrites)
