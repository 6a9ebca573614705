"""What a client is told when a request can't be answered: a status, a short code, what was expected and found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 200


class RequestError(Exception):
    """A request that can't be answered.

    Args:
        status: HTTP status.
        code: short name for programs ("too_large").
        message: one sentence for people; it never names a path or a line of code.
        expected, found: what would have been right, and what came.
        retry: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        expected: object = None,
        found: object = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry = status, code, message, retry
        self.details = {"expected": expected, "found": found}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent as JSON."""
        details = {key: shown(value) for key, value in self.details.items() if value is not None}
        return {"error": {"code": self.code, "message": self.message, **details}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that belong to it."""
        return {} if self.retry is None else {"Retry-After": str(self.retry)}


def shown(value: object) -> str:
    """Return a value as text of a length that can be shown; what a client sent may be long."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
