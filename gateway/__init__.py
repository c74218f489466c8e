"""A reverse proxy that repairs legacy PATCH calls to a conversation API, and records every repair."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.in_process.httpx_transport import RepairingTransport as RepairingTransport

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The transport on demand: whoever imports the package for something else does not load httpx."""
    if name != "RepairingTransport":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gateway.in_process.httpx_transport import RepairingTransport

    return RepairingTransport
