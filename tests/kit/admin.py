"""The admin endpoints that the dashboard asks, as a script: what they send, and when, is the test's to say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway import dashboard
from gateway.counts import BOUNDS_US, BUCKETS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

START_S: Final = 1_764_190_000
"""When the first event was sent."""

BOUNDS_MS: Final = tuple(bound_us / 1000 for bound_us in BOUNDS_US)

Usage = dict[str, Any]


def counts(requests: int = 0, refused: dict[str, int] | None = None, **others: Any) -> Usage:
    """Return what is counted of a token, a target, or in all; `others` in place of what follows from these two."""
    refused = refused or {}
    return {
        "requests": requests,
        "passed": requests - sum(refused.values()),
        "refused": refused,
        "upstream_errors": 0,
        "failed": 0,
        "retries": 0,
        "bytes_in": 400 * requests,
        "bytes_out": 6000 * requests,
        "in_flight": 0,
        "cost": {},
        "latency_ms": {"p50": 12.0, "p90": 40.0, "p99": 95.0} if requests else {"p50": None, "p90": None, "p99": None},
        **others,
    }


def limit(name: str = "minute", used: int = 0, quota: int = 60, **others: Any) -> Usage:
    """Return how a limit stands, as `GET /usage` tells it."""
    return {
        "name": name,
        "kind": "window",
        "shared": False,
        "shadow": False,
        "limit": quota,
        "window": 60.0,
        "used": used,
        "remaining": max(quota - used, 0),
        "reset": 12.5 if used else 0.0,
        **others,
    }


def budget(name: str = "day-USD", spent: str = "0", held: str = "0", amount: str = "5", **others: Any) -> Usage:
    """Return how a budget stands, as `GET /usage` tells it."""
    window, _, unit = name.rpartition("-")
    left = max(Decimal(amount) - Decimal(spent) - Decimal(held), Decimal(0))
    return {
        "name": name,
        "unit": unit,
        "window": window.rpartition("-")[2],
        "shared": name.startswith("global-"),
        "limit": amount,
        "spent": spent,
        "held": held,
        "remaining": f"{left:f}",
        "reset": 3600.0 if spent != "0" else 0.0,
        **others,
    }


def token(
    token_id: str,
    name: str | None,
    *limits: Usage,
    budgets: Sequence[Usage] = (),
    revoked: bool = False,
    **counted: Any,
) -> Usage:
    """Return what is told of a token; `counted` as for `counts`."""
    standing = {"revoked": revoked, "limits": list(limits), "budgets": list(budgets)}
    return {"id": token_id, "name": name, **standing, **counts(**counted)}


def usage(
    second: int,
    *tokens: Usage,
    totals: Usage | None = None,
    targets: dict[str, Usage] | None = None,
    times: Sequence[int] | None = None,
) -> Usage:
    """Return an event, so many seconds after the first; `times`: how many requests are in each bucket of latency."""
    histogram = {"bounds": list(BOUNDS_MS), "counts": list(times or [0] * BUCKETS)}
    totals = totals or counts(sum(one["requests"] for one in tokens))
    return {
        "at": datetime.fromtimestamp(START_S + second, UTC).isoformat().replace("+00:00", "Z"),
        "instances": 1,
        "totals": {**totals, "latency_histogram_ms": histogram},
        "targets": targets or {"api": counts()},
        "tokens": list(tokens),
    }


class Admin:
    """A server with the page, and with endpoints that the test scripts.

    Args:
        key: What it wants to be shown; None: nothing.

    Attributes:
        url: Where it is.
        first: The event that whoever opens the stream gets at once.
        revoked: The ids that it was told to revoke.
        refuses_revoking: It answers that with 503.
        opened: How often the stream was opened by somebody who may.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.url = ""
        self.first = usage(0)
        self.revoked: list[str] = []
        self.refuses_revoking = False
        self.opened = 0
        self._streams: list[asyncio.Queue[bytes | None]] = []

    def sends(self, event: Usage) -> None:
        """Send an event to everybody who has the stream open, and to whoever opens it from now on."""
        self.first = event
        for stream in self._streams:
            stream.put_nowait(_event(event))

    def ends_streams(self) -> None:
        for stream in self._streams:
            stream.put_nowait(None)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/dashboard"):
            status, fields, content = dashboard.answer(request.path.encode())
            return web.Response(status=status, headers=dict(fields), body=content)
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _problem(403, "This endpoint takes the admin key as 'Authorization: Bearer KEY'.")
        if request.method == "DELETE" and request.path.startswith("/admin/tokens/"):
            if self.refuses_revoking:
                return _problem(503, "Redis is out.")
            token_id = request.path.removeprefix("/admin/tokens/")
            self.revoked.append(token_id)
            return web.json_response({"id": token_id, "revoked": True})
        if request.path_qs != "/admin/usage?stream":
            return _problem(404, "There is no such path.")
        return await self._stream(request)

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await answer.prepare(request)
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        stream.put_nowait(_event(self.first))
        self._streams.append(stream)
        self.opened += 1
        try:
            while (event := await stream.get()) is not None:
                # In two pieces, as a network may cut it.
                await answer.write(event[:40])
                await answer.write(event[40:])
        except ConnectionError:  # the page was left
            pass
        finally:
            self._streams.remove(stream)
        return answer


@contextlib.asynccontextmanager
async def running_admin(key: str | None = None) -> AsyncIterator[Admin]:
    """Run one on a free port of 127.0.0.1 until the block ends."""
    admin = Admin(key)
    runner = web.ServerRunner(web.Server(admin.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        admin.url = f"http://{host}:{port}"
        yield admin
    finally:
        admin.ends_streams()
        await runner.cleanup()


def _event(event: Usage) -> bytes:
    return b"event: usage\ndata: " + json.dumps(event).encode() + b"\n\n"


def _problem(status: int, detail: str) -> web.Response:
    return web.json_response(
        {"status": status, "detail": detail}, status=status, content_type="application/problem+json"
    )
