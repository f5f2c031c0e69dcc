"""One command in one sandbox: from its launch to its result, whatever comes in between."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .cancellation import uncancelled
from .command import Commands, not_found
from .doubt import doubtful, known
from .enforcement import Enforcement
from .errors import SetupError
from .guard import Guard
from .limits import Ended, reached, tail
from .link import Link
from .marks import Marks
from .meter import Meter
from .plan import Plan
from .pool import REFILL_SECONDS
from .result import Reason, Result
from .running import Running
from .started import Started
from .streams import Output
from .usage import Counters, merge
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
    commands: Commands
    running: Running = field(default_factory=Running)

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

    Attributes:
        marks: As given.
        connections: What it connected to, once it has ended; also where its caller was cancelled.
    """

    def __init__(
        self, shared: Shared, started: Started, marks: Marks, name: str, *,
        asked_seconds: float | None = None, outputs: tuple[Output, ...] = (),
        membership: Membership | None = None,
    ) -> None:  # fmt: skip
        self._shared = shared
        self._started = started
        self.marks = marks
        self._name = name
        self._outputs = outputs
        self._membership = membership
        self.connections: tuple[Connection, ...] = ()
        limit = shared.policy.resources.wall_seconds
        if asked_seconds is not None:
            limit = asked_seconds if limit is None else min(limit, asked_seconds)
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None  # of the limit
        self._over = self._timed_out = False

    @property
    def meter(self) -> Meter | None:
        """Of its cgroup; None where it has none."""
        return self._started.meter

    async def carry_out(
        self, order: bytes | None, late: Callable[[], None] | None = None
    ) -> Result:
        """Send `order`, and wait until nothing of the sandbox is left.

        Args:
            order: Of the command; None where it has been sent.
            late: Called once if it still runs after `REFILL_SECONDS`.

        Raises:
            CommandNotFound: it could not be executed.
            SetupError: the sandbox could not be closed around it.

        A caller that is cancelled, however often, goes on when the sandbox is gone.
        """
        shared, started, ways = self._shared, self._started, self._shared.ways
        counters: Counters | None = None
        began = time.monotonic()
        doubted = doubtful(self.marks, (other.marks for other in shared.running.all))
        shared.running.add(self)
        try:
            if ways.exist:
                ways.publish(started)
            if self._membership is not None:
                await ways.join(started, self._membership)
                began = time.monotonic()
            # The kernel starts the command where the gateway runs, which has to sleep first: what is
            # done from here to there, the command waits for.
            if order is not None:
                started.order(order)
            self._watch_time(late)
            end = await started.ended()
        finally:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            if ways.exist:
                ways.withdraw(started)
            try:
                if not started.end.done() or (ways.exist and ways.are_open(started)):
                    await uncancelled(self._empty())
            finally:  # which a caller who is cancelled meanwhile leaves with that, once all is gone
                if started.meter is not None:
                    counters = started.meter.count(shared.plan)
                for output in self._outputs:
                    output.drain()
                shared.running.discard(self)
                moved = shared.guard.move_aside(known(self.marks, doubted))
        wall_seconds = time.monotonic() - began
        if code := end.get("refused"):
            raise not_found(self._name, code)
        if error := end.get("error"):
            raise SetupError(f"the sandbox could not be closed: {error}")
        return self._result(end, counters, wall_seconds, moved)

    def kill(self) -> None:
        """SIGKILL to all in the sandbox."""
        self._started.kill()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group; nothing when it has ended."""
        self._shared.link.signal(self._started, number)

    def _watch_time(self, late: Callable[[], None] | None) -> None:
        """End it at its limit, and call `late` before; by one timer, which most commands are faster than."""
        loop, limit = self._started.loop, self._limit
        if late is None or (limit is not None and limit <= REFILL_SECONDS):
            self._timer = None if limit is None else loop.call_later(limit, self._expire)
        else:
            loop.call_later(REFILL_SECONDS, self._on_late, late)  # cancelling it would take longer

    def _on_late(self, late: Callable[[], None]) -> None:
        if not self._over:
            late()
            if self._limit is not None:
                left = self._limit - REFILL_SECONDS
                self._timer = self._started.loop.call_later(left, self._expire)

    def _expire(self) -> None:
        self._timed_out = True
        self._started.kill()

    async def _empty(self) -> None:
        await self._started.gone()
        self.connections = await self._shared.ways.close(self._started)

    def _result(
        self, report: Mapping[str, Any], counters: Counters | None, wall_seconds: float,
        moved: tuple[str, ...],
    ) -> Result:  # fmt: skip
        stdout, stderr = self._outputs or (None, None)
        out = bytes(stdout.kept) if stdout else b""
        err = bytes(stderr.kept) if stderr else b""
        out_bytes = stdout.total_bytes if stdout else 0
        err_bytes = stderr.total_bytes if stderr else 0
        usage = merge(counters, report)
        end = Ended(
            wall_seconds=wall_seconds, asked_seconds=self._limit, timed_out=self._timed_out,
            report=report, counters=counters, usage=usage, kept=len(out) + len(err),
            written=out_bytes + err_bytes, tail=tail(err),
        )  # fmt: skip
        status = report.get("status")
        reason: Reason = "signaled"
        exit_code: int | None = None
        number: int | None = int(signal.SIGKILL)
        if self._timed_out:
            reason = "timed_out"
        elif end.out_of_memory:
            reason = "out_of_memory"
        elif isinstance(status, int):
            if os.WIFEXITED(status):
                reason, exit_code, number = "exited", os.WEXITSTATUS(status), None
            else:
                number = os.WTERMSIG(status)
        return Result(
            exit_code=exit_code, signal=number, reason=reason, wall_seconds=wall_seconds,
            stdout=out, stderr=err, stdout_bytes=out_bytes, stderr_bytes=err_bytes,
            enforcement=self._shared.enforcement, moved_aside=moved, connections=self.connections,
            usage=usage, limits=reached(self._shared.policy, end),
        )  # fmt: skip
