"""Policies and configuration that change while the gateway runs.

Theory of operation
    Once a second, and at once on SIGHUP, the files are looked at by their stat. When one has changed,
    everything is read and made anew before anything is put in force; what is wrong with it is said on
    stderr, in the record and as a span, and what was in force stays. A file that a sandboxed command
    could have written is never read again, but for a project's profile, of which a person accepts
    each content: `steady`. Stat alone can miss a change
    within one tick of the file system's clock that keeps the length; an editor makes none such.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..isolation import IsolationError, View
from ..policies import PolicyError, PolicySource
from .config import ConfigError
from .gateway import Gateway
from .reasons import Reason
from .wire.health import Roster

PERIOD_SECONDS = 1.0


@contextlib.asynccontextmanager
async def reloading(
    gateway: Gateway, roster: Roster, stamp: Callable[[], object],
    reload: Callable[[], Awaitable[str]],
) -> AsyncGenerator[None]:  # fmt: skip
    """Reload whenever something changes, while entered.

    Args:
        gateway: Whose record says so.
        roster: What `purple ps` shows, a refusal too.
        stamp: Changes when a file does. Reads the file system, in a thread.
        reload: Reads and puts in force; returns what it did, "" for nothing. What it raises as
            `PolicyError`, `ConfigError` or `IsolationError` has changed nothing.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ValueError, RuntimeError):  # only in the main thread
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    known = await asyncio.to_thread(stamp)

    async def watch() -> None:
        nonlocal known
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), PERIOD_SECONDS)
            now = await asyncio.to_thread(stamp)
            if now != known or asked.is_set():
                asked.clear()
                known = now
                await _once(gateway, roster, reload)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(ValueError, RuntimeError):
            loop.remove_signal_handler(signal.SIGHUP)


def steady(source: PolicySource, views: Sequence[View]) -> PolicySource:
    """What to read again for `source`: nothing of it can a sandboxed command write.

    Raises:
        PolicyError: one of its files is in a place that one of the views lets commands write to: an
            agent would make its own policy.
    """
    for file in source.files():
        refuse_changeable(file, views)
    # What a person accepts is held to what they have seen, wherever it lies. What turns up beside a
    # policy that has nothing of the project is left alone.
    project = source.project
    if project is None or any(file.state != "new" for file in source.brought()):
        return source
    changeable = any(view.changeable(str(project)) for view in views)
    return replace(source, project=None) if changeable else source


def refuse_changeable(path: Path, views: Sequence[View]) -> None:
    """Raise `PolicyError` for a file that commands can write."""
    if any(view.changeable(str(path)) for view in views):
        raise PolicyError(
            "commands in the sandbox can write here, so a change is not put in force while the gateway "
            "runs; restart it, or keep the file elsewhere", file=str(path),
        )  # fmt: skip


async def _once(gateway: Gateway, roster: Roster, reload: Callable[[], Awaitable[str]]) -> None:
    try:
        done = await reload()
    except (PolicyError, ConfigError, IsolationError) as error:
        text = f"reload refused, {gateway.policy.name} stays as it was: {error}"
        print(f"purple: {text}", file=sys.stderr, flush=True)
        gateway.note(Reason.RELOAD_REFUSED, gateway.policy, text)
        roster.reload_refused = str(error)
        return
    roster.reload_refused = ""
    if done:
        print(f"purple: {done}", file=sys.stderr, flush=True)
        gateway.note(Reason.COMPLETED, gateway.policy, done)
