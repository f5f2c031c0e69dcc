"""What must be done to its end although whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Carry `work` out to its end, and only then be cancelled.

    Args:
        work: Must end by itself: it runs in a task of its own, which nobody can cancel.

    Raises:
        CancelledError: once `work` has ended, if the caller was cancelled meanwhile, in asyncio's way
            (once for each `cancel()`) or in anyio's (again and again until the scope is left).

    What `work` raises is raised; beside a cancellation it is lost.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.done():
            raise
        from anyio import CancelScope  # on the rare way only: a command line starts without it

        with CancelScope(shield=True):  # anyio would spin otherwise
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at
        raise
