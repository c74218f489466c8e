"""
One listener before several upstreams: each request goes to the lifecycle of the upstream that it is for.

Each upstream has a lifecycle of its own, with its own cache, locks, credentials and connections: nothing that
is known of one fills a call to another (S6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from gateway.errors import GatewayError, NotServed
from gateway.http.destinations import Destinations
from gateway.http.headers import by_name
from gateway.http.slots import Slot
from gateway.proxy.client import ClientRequest
from gateway.proxy.lifecycle import Lifecycle, counted_method


class Dispatcher:
    def __init__(
        self,
        destinations: Destinations,
        served: Mapping[str, Lifecycle],
        counts: Counter[tuple[str, ...]],
        log_refusal: Callable[[GatewayError, str], None],
    ) -> None:
        """`served` by the names of the destinations."""
        # An upstream behind httpx wants asyncio's own tasks.
        self.direct = all(lifecycle.direct for lifecycle in served.values())
        self._destinations = destinations
        self._served = served
        self._counts = counts
        self._log_refusal = log_refusal

    async def serve(self, request: ClientRequest) -> None:
        """Raises NotServed, which the server answers."""
        host = request.headers.derived(by_name).get(b"host", b"")
        if isinstance(host, Slot):
            host = request.values[host.number]
        try:
            name, request.target = self._destinations.chosen(host, request.target)
        except NotServed as error:
            self._counts["gateway_refusals_total", error.slug()] += 1
            self._counts["gateway_requests_total", "none", counted_method(request.method), "4xx"] += 1
            self._log_refusal(error, request.address)
            raise
        await self._served[name].serve(request)
