"""One command in one sandbox: from its launch to its result, whatever comes in between."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cancellation import uncancelled
from .command import not_found
from .enforcement import Enforcement
from .errors import SetupError
from .guard import Guard
from .limits import Ended, reached, tail
from .link import Link
from .marks import Marks
from .plan import Plan
from .result import Reason, Result
from .started import Started
from .streams import Output
from .usage import merge
from .ways import Membership, Ways

if TYPE_CHECKING:
    from ..policies import Policy
    from .egress.connections import Connection


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the sandboxes of one engine share, once it has been entered."""

    policy: Policy
    plan: Plan
    enforcement: Enforcement
    guard: Guard
    link: Link
    ways: Ways

    def look(self) -> Marks:
        """What of the workspace is to be covered now. Raises `SetupError`, when that is too much."""
        try:
            return self.guard.look()
        except ValueError as error:
            raise SetupError(str(error)) from error


class Execution:
    """A command that has a sandbox.

    Args:
        shared: The engine's.
        started: The sandbox; from here on this object's to account for, and the caller's to give
            back (`Link.gone`) once `carry_out` has returned or raised.
        marks: What of the workspace was covered in it.
        name: What is executed, for errors.
        asked_seconds: The time limit that its caller asked for; None for none. The policy's bounds it.
        outputs: Its stdout and stderr where they are collected.
        membership: Its part in a session's loopback; None for none.
    """

    def __init__(
        self, shared: Shared, started: Started, marks: Marks, name: str, *,
        asked_seconds: float | None = None, outputs: tuple[Output, ...] = (),
        membership: Membership | None = None,
    ) -> None:  # fmt: skip
        self._shared = shared
        self._started = started
        self._marks = marks
        self._name = name
        self._asked_seconds = asked_seconds
        self._outputs = outputs
        self._membership = membership

    async def carry_out(self, launch: Callable[[], None]) -> Result:
        """Call `launch`, which starts the command, and wait until nothing of the sandbox is left.

        Raises:
            CommandNotFound: it could not be executed.
            SetupError: the sandbox could not be closed around it.

        A caller that is cancelled, however often, goes on when the sandbox is gone.
        """
        shared, started = self._shared, self._started
        limit = shared.policy.resources.wall_seconds
        if self._asked_seconds is not None:
            limit = self._asked_seconds if limit is None else min(limit, self._asked_seconds)
        began = time.monotonic()
        connections: tuple[Connection, ...] = ()
        try:
            shared.ways.publish(started)
            if self._membership is not None:
                await shared.ways.join(started, self._membership)
            launch()
            if started.cgroup is not None:
                started.cgroup.open_counters()  # while the command starts
            end, timed_out = await _end(started, limit)
        finally:
            shared.ways.withdraw(started)
            if not started.end.done() or shared.ways.are_open(started):
                connections = await uncancelled(self._empty())
            counters = started.cgroup.count(shared.plan) if started.cgroup is not None else None
            moved = shared.guard.move_aside(self._marks)
            for output in self._outputs:
                output.drain()
        if code := end.get("refused"):
            raise not_found(self._name, code)
        if error := end.get("error"):
            raise SetupError(f"the sandbox could not be closed: {error}")
        last = self._outputs[-1].kept if self._outputs else b""
        ended = Ended(
            wall_seconds=time.monotonic() - began, asked_seconds=limit, timed_out=timed_out,
            report=end, counters=counters, usage=merge(counters, end),
            kept=sum(len(output.kept) for output in self._outputs),
            written=sum(output.total_bytes for output in self._outputs),
            tail=tail(last),
        )  # fmt: skip
        return self._result(ended, moved, connections)

    def kill(self) -> None:
        """SIGKILL to all in the sandbox."""
        self._started.kill()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group; nothing when it has ended."""
        self._shared.link.signal(self._started, number)

    async def _empty(self) -> tuple[Connection, ...]:
        await self._started.gone()
        return await self._shared.ways.close(self._started)

    def _result(
        self, end: Ended, moved: tuple[str, ...], connections: tuple[Connection, ...]
    ) -> Result:
        status = end.report.get("status")
        reason: Reason = "signaled"
        exit_code: int | None = None
        number: int | None = int(signal.SIGKILL)
        if end.timed_out:
            reason = "timed_out"
        elif end.out_of_memory:
            reason = "out_of_memory"
        elif isinstance(status, int):
            if os.WIFEXITED(status):
                reason, exit_code, number = "exited", os.WEXITSTATUS(status), None
            else:
                number = os.WTERMSIG(status)
        stdout, stderr = self._outputs or (None, None)
        return Result(
            exit_code=exit_code, signal=number, reason=reason, wall_seconds=end.wall_seconds,
            stdout=bytes(stdout.kept) if stdout else b"",
            stderr=bytes(stderr.kept) if stderr else b"",
            stdout_bytes=stdout.total_bytes if stdout else 0,
            stderr_bytes=stderr.total_bytes if stderr else 0,
            enforcement=self._shared.enforcement, moved_aside=moved, connections=connections,
            usage=end.usage, limits=reached(self._shared.policy, end),
        )  # fmt: skip


async def _end(started: Started, limit: float | None) -> tuple[Mapping[str, Any], bool]:
    """The zygote's report, and whether the limit came first."""
    late: list[bool] = []

    def expire() -> None:
        late.append(True)
        started.kill()

    timer = None if limit is None else asyncio.get_running_loop().call_later(limit, expire)
    try:
        end = await started.ended()
    finally:
        if timer is not None:
            timer.cancel()
    return end, bool(late)
