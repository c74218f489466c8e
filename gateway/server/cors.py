"""
Cross-origin requests answered here instead of by the upstream: preflights, and who may read a reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware

from gateway.server.asgi import AsgiApp, Message, Receive, Send

EXPOSED = ("Gateway-Rewrite", "Server-Timing", "X-Request-Id", "Deprecation", "Sunset", "Link")


def with_cors(
    app: AsgiApp,
    *,
    origins: Sequence[str],
    methods: Sequence[str],
    headers: Sequence[str],
    credentials: bool,
    max_age: float,
) -> AsgiApp:
    """`max_age`: seconds for which a browser may keep a preflight's answer."""
    return CORSMiddleware(
        _without_cors(app),
        allow_origins=origins,
        allow_methods=methods,
        allow_headers=headers,
        allow_credentials=credentials,
        expose_headers=EXPOSED,
        max_age=round(max_age),
    )


def _without_cors(app: AsgiApp) -> AsgiApp:
    """
    What the upstream says of CORS ends here: its origins together with the gateway's credentials would let in
    whom neither of them meant.
    """

    async def silenced(scope: Message, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    pair for pair in message["headers"] if not pair[0].startswith(b"access-control-")
                ]
            await send(message)

        await app(scope, receive, without)

    return silenced
