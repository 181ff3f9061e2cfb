"""Access control of the web application: tokens, rate limits and response headers.

There are no cookies. The token comes from the link's fragment (which browsers send to nobody), is
kept in the tab's session storage, and is sent as a bearer header. So another site can neither read
it nor make a browser send it. Pages contain no data; all data come from the API.
"""

import math
import threading
import time
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textrl.labels.lead import labeler_of
from textrl.labels.store import Store
from textrl.labels.tables import Labeler

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Buckets:
    """Rate limits: each key may act `burst` times at once, and then `rate` times per second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take a token of the bucket and return 0, or return the seconds to wait for one."""
        now = time.monotonic()
        with self._lock:
            if len(self._left) > 10_000:  # forget the key that was unused for longest
                del self._left[next(iter(self._left))]
            left, then = self._left.pop(key, (self._burst, now))
            left = min(self._burst, left + (now - then) * self._rate)
            if left < 1:
                self._left[key] = (left, now)
                return (1 - left) / self._rate
            self._left[key] = (left - 1, now)
            return 0.0


class Gate:
    """Identifies callers by their token and limits their rate."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._per_labeler = Buckets(rate=100, burst=500)
        self._strangers = Buckets(rate=1, burst=30)

    def admit(self, token: str, address: str) -> Labeler:
        """Return the labeler with this token; raise HTTPException 401 or 429 otherwise."""
        labeler = labeler_of(self._store, token)
        if labeler is None:
            _refuse_if(self._strangers.take(address))
            raise HTTPException(
                401,
                "this link is not valid (any more); ask the lead for a new one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        _refuse_if(self._per_labeler.take(str(labeler.id)))
        return labeler


def _refuse_if(wait: float) -> None:
    if wait:
        seconds = str(math.ceil(wait))
        raise HTTPException(429, "too many requests", headers={"Retry-After": seconds})


def current_labeler(
    request: Request,
    credentials: Annotated[
        HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
    ],
) -> Labeler:
    """Return the labeler who sends the request."""
    gate: Gate = request.app.state.gate
    token = credentials.credentials if credentials else ""
    return gate.admit(token, request.client.host if request.client else "")


def current_lead(labeler: Annotated[Labeler, Depends(current_labeler)]) -> Labeler:
    """Return the lead who sends the request; raise HTTPException 403 for any other caller."""
    if not labeler.is_lead:
        raise HTTPException(403, "this page is the lead's")
    return labeler


class SecurityHeaders:
    """ASGI middleware that adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)
