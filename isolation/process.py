"""`Process`: a command that runs in a sandbox while its caller talks with it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio.abc import AsyncResource

from .cancellation import uncancelled
from .errors import SetupError
from .execution import Execution, Shared
from .pipes import Ends, ReceivePipe, SendPipe, Stderr, Stdin, open_pipes

if TYPE_CHECKING:
    from .result import Result
    from .ways import Membership


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """A process as its engine holds it.

    Attributes:
        execution: Its command in its sandbox.
        task: Ends with its result, when nothing of the sandbox is left; nobody cancels it.
        ends: Our ends of its pipes; whoever asked for it closes them.
    """

    execution: Execution
    task: asyncio.Task[Result]
    ends: Ends

    def met_memory_limit(self) -> bool:
        """Whether somebody in it was killed for memory; whoever else is there will be."""
        if self.task.done():  # its cgroup may be another's
            return self.task.result().reason == "out_of_memory"
        meter = self.execution.meter
        return meter is not None and meter.oom_kills() > 0

    async def ended(self) -> None:
        """Wait until nothing of it is left; raises nothing of what became of it."""
        await asyncio.wait({self.task})

    async def end(self) -> None:
        """Kill it, and return when nothing of it is left."""
        self.kill()
        await uncancelled(self.ended())

    def kill(self) -> None:
        """SIGKILL to all of it; nothing when it has ended."""
        if not self.task.done():
            self.execution.kill()

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing when it has ended."""
        if not self.task.done():
            self.execution.signal(number)


async def spawn(
    shared: Shared, argv: Sequence[str], *, cwd: str, env: Mapping[str, str] | None, stdin: Stdin,
    stderr: Stderr, wall_seconds: float | None, membership: Membership | None,
) -> Held:  # fmt: skip
    """Start a process; arguments and errors as of `Engine.start`."""
    command = shared.commands.command(argv, cwd, env)
    shared.commands.find(command)  # whoever starts it is told at once
    order = command.order()
    marks = shared.look()
    try:
        theirs, ours = open_pipes(stdin, stderr)
        try:
            started = await shared.link.spawn((theirs.stdin, theirs.stdout, theirs.stderr), marks)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
    except OSError as error:  # EMFILE
        raise SetupError(f"no sandbox can be prepared: {error}") from error
    shared.ways.open(started)
    execution = Execution(
        shared, started, marks, argv[0], asked_seconds=wall_seconds, membership=membership
    )

    async def live() -> Result:
        try:
            return await execution.carry_out(order)
        finally:
            shared.link.gone(started)

    task = asyncio.create_task(live())
    # Looked at: a process that nobody waits for is nobody's error.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return Held(execution=execution, task=task, ends=ours)


class Process(AsyncResource):
    """A command that runs in a sandbox of its own. Made by `Engine.start`.

    As an async context manager it is ended when the block is left: what must run to its end is waited
    for (`wait`) inside. It ends with its engine, too. Nobody who stops waiting ends it.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        ends = held.ends
        self._stdin = SendPipe(ends.stdin) if ends.stdin >= 0 else None
        self._stdout = ReceivePipe(ends.stdout)
        self._stderr = ReceivePipe(ends.stderr) if ends.stderr >= 0 else None

    @property
    def stdin(self) -> SendPipe:
        """Its standard input. Raises `RuntimeError` where that is /dev/null."""
        if self._stdin is None:
            raise RuntimeError('it was started with stdin="null"')
        return self._stdin

    @property
    def stdout(self) -> ReceivePipe:
        """Its standard output: iterate over it, or `receive`. It waits while nobody receives."""
        return self._stdout

    @property
    def stderr(self) -> ReceivePipe:
        """The same for its standard error. Raises `RuntimeError` where both are one."""
        if self._stderr is None:
            raise RuntimeError('it was started with stderr="stdout"; read stdout')
        return self._stderr

    @property
    def result(self) -> Result | None:
        """How it ended; None while it runs. Raises as `wait` does."""
        return self._held.task.result() if self._held.task.done() else None

    def met_memory_limit(self) -> bool:
        """Whether somebody in it was killed at `resources.memory_limit`, which ends all of it."""
        return self._held.met_memory_limit()

    async def wait(self) -> Result:
        """Wait until nothing of it is left. What it wrote can still be received then.

        Returns:
            Its `Result`, with `stdout` and `stderr` empty: those went through the streams.

        Raises:
            CommandNotFound: the kernel would not execute it (a script's interpreter is missing).
            SetupError: the sandbox could not be closed around it; it has not run.

        Receive meanwhile what it writes: a pipe that is full makes it wait for ever.
        """
        await self._held.ended()
        return self._held.task.result()

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group; nothing when it has ended.

        Raises:
            ValueError: there is no such signal.
        """
        self._held.signal(number)

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything that it has started: SIGKILL."""
        self._held.kill()

    async def aclose(self) -> None:
        """End it and close its streams; returns when nothing of it is left."""
        self.kill()  # first: it is not to die of SIGPIPE, or to read an end of file
        for pipe in self._pipes():
            pipe.close()
        await self._held.end()

    def drop(self) -> None:
        """Close its streams when its engine has been closed, and the engine's event loop with it."""
        for pipe in self._pipes():
            pipe.drop()

    def _pipes(self) -> list[ReceivePipe | SendPipe]:
        return [pipe for pipe in (self._stdin, self._stdout, self._stderr) if pipe is not None]
