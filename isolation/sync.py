"""`SyncEngine` and `SyncProcess`: `Engine` and `Process` for programs without an event loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .enforcement import Enforcement
from .errors import IsolationError
from .loopthread import LoopThread
from .result import Result
from .sandbox import Engine
from .streams import OnOutput
from .ways import Membership

if TYPE_CHECKING:
    from ..policies import Grant, Policy
    from .pipes import Stderr, Stdin
    from .process import Held
    from .standing import Sandbox


class SyncEngine:
    """An `Engine` on an event loop in a thread of its own. Use as a context manager.

    Calls may come from several threads at once. Arguments, results and errors are the engine's.
    """

    def __init__(self, policy: Policy, workspace: Path | None) -> None:
        self._engine = Engine(policy, workspace)
        self._home = LoopThread()

    @property
    def enforcement(self) -> Enforcement:
        """What holds for every sandbox. Raises `RuntimeError` before entering."""
        return self._engine.enforcement

    def __enter__(self) -> SyncEngine:
        self._home.start()
        try:
            self._home.wait(self._engine.__aenter__())
        except BaseException:
            self._home.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._home.wait(self._close())
        finally:
            self._home.stop()

    async def _close(self) -> None:
        try:
            await self._engine.aclose()
        finally:
            await self._home.settle()

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        wall_seconds: float | None = None,
        on_output: OnOutput | None = None,
        session: Hashable = None,
    ) -> Result:
        """As `Engine.run`; `on_output` is called in the engine's thread."""
        return self._home.wait(
            self._engine.run(
                argv,
                cwd=cwd,
                env=env,
                stdin=stdin,
                wall_seconds=wall_seconds,
                on_output=on_output,
                session=session,
            )
        )

    def call(
        self, operation: str, arguments: Mapping[str, Any], *, grant: Grant | None = None
    ) -> Result:
        """As `Engine.call`."""
        return self._home.wait(self._engine.call(operation, arguments, grant=grant))

    def start(
        self, argv: Sequence[str], *, cwd: str = "", env: Mapping[str, str] | None = None,
        stdin: Stdin = "pipe", stderr: Stderr = "pipe", wall_seconds: float | None = None,
        session: Hashable = None, name: str = "process",
    ) -> SyncProcess:  # fmt: skip
        """As `Engine.start`; its streams are files."""
        membership = None if session is None else Membership(session, name)
        made: list[Held] = []

        async def spawn() -> None:
            made.append(
                await self._engine._spawn(argv, cwd, env, stdin, stderr, wall_seconds, membership)
            )

        try:
            self._home.wait(spawn())
        except BaseException:
            for held in made:  # it came when its caller had been interrupted
                held.ends.close()
                self._home.wait(held.end())
            raise
        return SyncProcess(made[0], self._home)

    def sandbox(
        self, *, session: Hashable = None, name: str = "sandbox", wall_seconds: float | None = None
    ) -> SyncSandbox:
        """As `Engine.sandbox`."""
        made: list[Sandbox] = []

        async def stand() -> None:
            made.append(
                await self._engine.sandbox(session=session, name=name, wall_seconds=wall_seconds)
            )

        try:
            self._home.wait(stand())
        except BaseException:
            for sandbox in made:  # it came when its caller had been interrupted
                self._home.wait(sandbox.aclose())
            raise
        return SyncSandbox(made[0], self._home)


class SyncSandbox:
    """One sandbox for several commands. Made by `SyncEngine.sandbox`; otherwise as `Sandbox`.

    Several threads may run commands in it at once.
    """

    def __init__(self, sandbox: Sandbox, home: LoopThread) -> None:
        self._sandbox = sandbox
        self._home = home

    @property
    def result(self) -> Result | None:
        """As `Sandbox.result`."""
        return self._sandbox.result

    def run(
        self, argv: Sequence[str], *, cwd: str = "", env: Mapping[str, str] | None = None,
        stdin: bytes = b"", wall_seconds: float | None = None, on_output: OnOutput | None = None,
    ) -> Result:  # fmt: skip
        """As `Sandbox.run`; `on_output` is called in the engine's thread."""
        return self._home.wait(
            self._sandbox.run(
                argv, cwd=cwd, env=env, stdin=stdin, wall_seconds=wall_seconds, on_output=on_output
            )
        )

    def close(self) -> None:
        """End it; returns when nothing of it is left. May be called again, and after its engine's end."""
        if self._home.is_open:
            self._home.wait(self._sandbox.aclose())
        else:
            self._sandbox.drop()

    def __enter__(self) -> SyncSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SyncProcess:
    """A command that runs in a sandbox of its own. Made by `SyncEngine.start`.

    Attributes:
        stdin: Unbuffered; `write` blocks while the pipe is full, and raises `BrokenPipeError` when
            nobody will read. None where it is /dev/null.
        stdout: Buffered; `read1` gives what there is, b"" at the end.
        stderr: Likewise; None where both are one.

    As a context manager it is ended when the block is left. Other threads may call its methods; each
    file belongs to one thread at a time.
    """

    def __init__(self, held: Held, home: LoopThread) -> None:
        self._held = held
        self._home = home
        ends = held.ends
        self.stdin: BinaryIO | None = None if ends.stdin < 0 else os.fdopen(ends.stdin, "wb", 0)
        self.stdout: BinaryIO = os.fdopen(ends.stdout, "rb")
        self.stderr: BinaryIO | None = None if ends.stderr < 0 else os.fdopen(ends.stderr, "rb")

    def wait(self, timeout: float | None = None) -> Result:
        """As `Process.wait`. Raises `TimeoutError` after `timeout` seconds; it runs on."""
        if not self._held.task.done():
            self._home.wait(self._held.ended(), timeout)
        return self._held.task.result()

    def send_signal(self, number: int) -> None:
        """As `Process.send_signal`."""
        self._home.post(self._held.signal, number)

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything that it has started: SIGKILL."""
        self._home.post(self._held.kill)

    def close(self) -> None:
        """End it and close its files; returns when nothing of it is left."""
        self.kill()
        try:
            with contextlib.suppress(IsolationError):
                self.wait()
        finally:
            for file in (self.stdin, self.stdout, self.stderr):
                if file is not None:
                    file.close()

    def __enter__(self) -> SyncProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
