"""What has to run to its end even if its caller is cancelled: giving sockets back."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_P = ParamSpec("_P")


def to_the_end(work: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, Coroutine[Any, Any, None]]:
    """Have a coroutine function, which ends by itself, run to its end; a cancelled caller is cancelled after that."""

    @functools.wraps(work)
    async def whole(*args: _P.args, **kwargs: _P.kwargs) -> None:
        task = asyncio.ensure_future(work(*args, **kwargs))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:  # the caller, or the loop ends and with it the task
                cancelled = error
        try:
            task.result()
        finally:
            if cancelled is not None:
                raise cancelled

    return whole
