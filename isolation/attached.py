"""A command on its caller's own descriptors, as `purple run` has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import pid1
from .execution import Execution, Shared
from .result import Result
from .started import Started

if TYPE_CHECKING:
    from .egress.connections import Connection
    from .link import Link


async def run_with(
    shared: Shared, argv: Sequence[str], fds: tuple[int, int, int], *,
    signals: asyncio.Queue[int], terminal: Callable[[int], None] | None, cwd: str,
    env: Mapping[str, str] | None, on_end: Callable[[tuple[Connection, ...]], None] | None,
) -> Result:  # fmt: skip
    """Arguments and errors as of `Engine.run_with`."""
    command = shared.commands.command(argv, cwd, env)
    tty = [i for i, fd in enumerate(fds) if os.isatty(fd)] if terminal is not None else []
    marks = shared.look()
    started = await shared.link.spawn(fds, marks, tty)
    shared.ways.open(started)
    if terminal is not None:
        terminal(started.master)
    forward = asyncio.create_task(_forward(signals, shared.link, started))
    execution = Execution(shared, started, marks, argv[0])
    try:
        return await execution.carry_out(command.order(pid1.TERMINAL if tty else ""))
    finally:
        forward.cancel()
        shared.link.gone(started)
        if on_end is not None:
            on_end(execution.connections)


async def _forward(signals: asyncio.Queue[int], link: Link, started: Started) -> None:
    while True:
        link.signal(started, await signals.get())
