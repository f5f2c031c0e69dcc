"""`SyncEngine`: an `Engine` for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .enforcement import Enforcement
from .result import Result
from .sandbox import Engine
from .streams import OnOutput

if TYPE_CHECKING:
    from ..policies import Grant, Policy

T = TypeVar("T")


class SyncEngine:
    """An `Engine` on an event loop in a thread of its own. Use as a context manager.

    Calls may come from several threads at once. Arguments, results and errors are the engine's.
    """

    def __init__(self, policy: Policy, workspace: Path | None) -> None:
        self._engine = Engine(policy, workspace)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="purple-engine", daemon=True
        )

    @property
    def enforcement(self) -> Enforcement:
        """What holds for every sandbox. Raises `RuntimeError` before entering."""
        return self._engine.enforcement

    def __enter__(self) -> SyncEngine:
        self._thread.start()
        try:
            self._wait(self._engine.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait(self._engine.aclose())
        finally:
            self._stop()

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        wall_seconds: float | None = None,
        on_output: OnOutput | None = None,
    ) -> Result:
        """As `Engine.run`; `on_output` is called in the engine's thread."""
        return self._wait(
            self._engine.run(
                argv, cwd=cwd, env=env, stdin=stdin, wall_seconds=wall_seconds, on_output=on_output
            )
        )

    def call(
        self, operation: str, arguments: Mapping[str, Any], *, grant: Grant | None = None
    ) -> Result:
        """As `Engine.call`."""
        return self._wait(self._engine.call(operation, arguments, grant=grant))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # interrupted: the sandbox is killed, as when a caller is cancelled
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
