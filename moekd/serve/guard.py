"""What stands before every address: size, time, number of requests, and the headers that protect the page."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .request_error import RequestError
from .settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
#: A refused body is read and thrown away up to these limits, so that the client sees the answer and no broken pipe.
DRAIN_SECONDS, DRAIN_TIMES = 2.0, 8


class Guard:
    """An ASGI application around another one.

    Args:
        app: what answers.
        settings: limits.

    Attributes:
        active: requests with a body that are being worked on.
        answers: finished requests by status.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.active, self.answers = 0, Counter[int]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.answers)
        if scope["method"] != "POST":
            await self.app(scope, receive, answer)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        try:
            self._check(headers)
        except RequestError as error:
            if b"expect" not in headers:  # a client that asks first has not sent its body
                await self._drain(receive)
            await answer.refuse(error)
            return
        self.active += 1
        try:
            async with asyncio.timeout(self.settings.timeout):
                await self.app(scope, self._limited(receive), answer)
        except TimeoutError:
            limit = f"at most {self.settings.timeout:g} seconds"
            await answer.refuse(RequestError(504, "timeout", "the request took too long", limit, retry=1))
        finally:
            self.active -= 1

    def _check(self, headers: MutableMapping[bytes, bytes]) -> None:
        """Refuse what can be told from the headers."""
        if headers.get(b"sec-fetch-site") == b"cross-site":
            raise RequestError(403, "cross_site", "pages of other sites may not use this server")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.settings.max_bytes:
            raise self._too_large(length.decode("latin-1"))
        if self.active >= self.settings.max_queue:
            raise RequestError(
                503, "busy", "too many requests at a time", f"at most {self.settings.max_queue}", self.active, retry=1
            )

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body that comes without its length."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.settings.max_bytes:
                raise self._too_large(f"more than {self.settings.max_bytes}")
            return message

        return limited

    def _too_large(self, found: str) -> RequestError:
        expected = f"at most {self.settings.max_bytes} bytes"
        return RequestError(413, "too_large", "the request is too large", expected, f"{found} bytes")

    async def _drain(self, receive: Receive) -> None:
        left = DRAIN_TIMES * self.settings.max_bytes
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


class _Answer:
    """Sends an answer with the protective headers, and remembers whether it has begun."""

    def __init__(self, send: Send, answers: Counter[int]) -> None:
        self.send, self.answers, self.begun = send, answers, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.answers[int(message["status"])] += 1
            given = {key.lower() for key, _ in message.get("headers", ())}
            extra = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self.send(message)

    async def refuse(self, error: RequestError) -> None:
        """Send an error, unless an answer has begun."""
        if self.begun:
            return
        content: bytes = json.dumps(error.body, ensure_ascii=False).encode()
        headers: dict[str, Any] = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **error.headers,
        }
        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": raw})
        await self({"type": "http.response.body", "body": content})
