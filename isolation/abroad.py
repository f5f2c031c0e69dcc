"""An engine whose callers are tasks of another event loop than asyncio's: trio's, by anyio.

`Engine` becomes the face of one that lives in a thread of its own (loopthread.py). What a call costs
more there is two wake-ups of a thread. A process's pipes are its caller's, on the caller's loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .loopthread import LoopThread, Relay
from .process import Held

if TYPE_CHECKING:
    from ..policies import Grant
    from .pipes import Stderr, Stdin
    from .result import Result
    from .sandbox import Engine
    from .streams import OnOutput
    from .ways import Membership


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldAbroad(Held):
    """A process for tasks of another event loop; `home` is where its engine holds it."""

    home: LoopThread

    async def ended(self) -> None:
        if not self.task.done():
            await self.home.wait_from_task(super().ended())

    async def end(self) -> None:
        if not self.task.done():
            await self.home.wait_from_task(super().end())

    def kill(self) -> None:
        self.home.post(super().kill)

    def signal(self, number: int) -> None:
        self.home.post(super().signal, number)


class Abroad:
    """Methods, arguments and errors are the engine's.

    Args:
        engine: Not entered.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._home = LoopThread()

    async def enter(self) -> Engine:
        self._home.start()
        try:
            return await self._home.wait_from_task(self.engine.__aenter__())
        except BaseException:
            self._home.stop()
            raise

    async def aclose(self) -> None:
        if self._home.is_open:
            try:
                await self._home.wait_from_task(self._close())
            finally:
                self._home.stop()

    async def _close(self) -> None:
        try:
            await self.engine.aclose()
        finally:
            await self._home.settle()

    async def run(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None, stdin: bytes,
        wall_seconds: float | None, on_output: OnOutput | None, session: Hashable,
    ) -> Result:  # fmt: skip
        relay = Relay(on_output) if on_output is not None else None
        work = self.engine.run(
            argv, cwd=cwd, env=env, stdin=stdin, wall_seconds=wall_seconds,
            on_output=relay.take_in if relay is not None else None, session=session,
        )  # fmt: skip
        return await self._home.wait_from_task(work, relay)

    async def call(
        self, operation: str, arguments: Mapping[str, Any], grant: Grant | None
    ) -> Result:
        return await self._home.wait_from_task(self.engine.call(operation, arguments, grant=grant))

    async def spawn(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None, stdin: Stdin,
        stderr: Stderr, wall_seconds: float | None, membership: Membership | None,
    ) -> Held:  # fmt: skip
        made: list[Held] = []

        async def spawn() -> None:
            made.append(
                await self.engine._spawn(argv, cwd, env, stdin, stderr, wall_seconds, membership)
            )

        try:
            await self._home.wait_from_task(spawn())
        except BaseException:
            from anyio import CancelScope

            with CancelScope(shield=True):
                for held in made:  # it came when its caller had gone
                    held.ends.close()
                    await self._home.wait_from_task(held.end())
            raise
        [held] = made
        return HeldAbroad(execution=held.execution, task=held.task, ends=held.ends, home=self._home)
