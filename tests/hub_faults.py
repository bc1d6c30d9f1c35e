"""Faults that the Hub of the tests commits on demand: what to spoil, how often, and how often it was done."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SPOILS_BODY = ("cut", "wrong hash", "short")
KINDS = (*SPOILS_BODY, "slow", "lost", "a status such as 500, 503 or 429")


@dataclass
class Fault:
    """One order; `hits` counts the requests that met it.

    | kind | what the client sees | details |
    |---|---|---|
    | "cut" | the connection closes within the answer to a GET, or within the request | after= bytes (half) |
    | "wrong hash" | a GET with as many bytes as promised, but others | |
    | "short" | a GET of fewer bytes, with a Content-Length of as many; not a HEAD | after= (half) |
    | "slow" | an answer after `seconds`, or with `per_chunk` seconds after each `chunk` bytes | all three |
    | "lost" | the request is carried out, and the connection closes without an answer | |
    | "500", ... | that status, and nothing is carried out | status=, retry_after= seconds (1 for 429) |

    The first three need a body, so they leave HEAD alone unless `method` asks for it.
    """

    kind: str
    method: str | None = None
    path: str = ".*"
    times: int | None = 1  # None: each time
    details: dict = field(default_factory=dict)
    hits: int = 0

    def __post_init__(self):
        if self.kind not in KINDS and not re.fullmatch("[45][0-9][0-9]", self.kind):
            raise ValueError(f"no fault {self.kind!r}: choose one of {', '.join(KINDS)}")
        unknown = set(self.details) - {"after", "seconds", "per_chunk", "chunk", "status", "retry_after"}
        if unknown:
            raise ValueError(f"a fault has no detail {', '.join(sorted(unknown))}")

    @property
    def status(self) -> int | None:
        return self.details.get("status", int(self.kind)) if self.kind.isdigit() else None

    @property
    def headers(self) -> dict[str, str]:
        wait = self.details.get("retry_after", 1 if self.status == 429 else None)
        return {} if wait is None else {"Retry-After": str(wait)}

    def take(self, method: str, path: str) -> bool:
        """Whether this request meets the fault; counts it if so."""
        if self.times is not None and self.hits >= self.times:
            return False
        wanted = (
            method == self.method.upper() if self.method else method != "HEAD" or self.kind not in SPOILS_BODY
        )
        if not wanted or not re.search(self.path, path):
            return False
        self.hits += 1
        return True

    def part(self, length: int) -> int:
        """How many of `length` bytes pass."""
        return min(self.details.get("after", length // 2), length)

    def spoil(self, body: bytes) -> bytes:
        """The bytes that go out instead of `body`; a cut is made by the caller, who promises all of them."""
        if self.kind == "wrong hash":
            return bytes(byte ^ 255 for byte in body)
        return body[: self.part(len(body))] if self.kind in ("cut", "short") else body
