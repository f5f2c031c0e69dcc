"""`Sandbox`: one that stands while its caller runs command after command in it.

Theory of operation
    It is a `Process` whose command is an interpreter inside (attendant.py), which starts what it is told to.
    Requests and answers are frames on its stdin and stdout. There is no task that reads them: whoever waits for
    an answer reads what comes next, and leaves what is another's for that one. So it works on each event
    loop, and ends with nothing left to be cancelled.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import AsyncResource

from . import inside
from .attendant import CHUNK_BYTES, END, ERR, HEAD, KILL, OUT, READY, RUN
from .command import not_found
from .errors import CommandNotFound, SetupError
from .result import Reason, Result
from .streams import OnOutput
from .usage import Limit, Usage

if TYPE_CHECKING:
    from .process import Process
    from .sandbox import Engine

_SAID_BYTES = 4096  # the longest END
_PATIENCE_SECONDS = 10.0  # with an attendant that is to read, or to end what it has started


class Sandbox(AsyncResource):
    """One sandbox for several commands, one after the other or at once. Made by `Engine.sandbox`.

    They share its private directories (/tmp, HOME), its processes, its localhost and its limits, all of them together
    (`resources.timeout` from its start); what a command leaves in the background goes on. They are not apart from
    each other: one may kill another, or what answers for it. What holds is around all of them, as around the
    command of a `run`; protected names that they make are moved aside when it ends.

    As an async context manager it is ended when the block is left. It ends with its engine, too.
    """

    def __init__(self, engine: Engine, process: Process) -> None:
        self._process = process
        self._keep_bytes = engine.policy.resources.output_bytes
        self._enforcement = engine.enforcement
        self._numbers = itertools.count(1)
        self._heard = bytearray()  # the beginning of an answer
        self._answers: dict[int, deque[tuple[bytes, bytes]]] = {0: deque()}
        self._reading, self._sending = anyio.Lock(), anyio.Lock()

    @property
    def result(self) -> Result | None:
        """How it ended, with what all its commands used and connected to; None while it stands.

        Raises:
            ProtectionError: what they made under a protected name could not be moved aside.
        """
        return self._process.result

    async def run(
        self, argv: Sequence[str], *, cwd: str = "", env: Mapping[str, str] | None = None,
        stdin: bytes = b"", wall_seconds: float | None = None, on_output: OnOutput | None = None,
    ) -> Result:  # fmt: skip
        """Run `argv` in it, and wait until it has exited.

        Args:
            argv: The command; `argv[0]` is looked up in the sandbox's PATH.
            cwd: Relative to the workspace (HOME where there is none), or absolute inside; "" is the workspace.
            env: Added to the policy's environment.
            stdin: Given to the command; empty is /dev/null.
            wall_seconds: It and its session are killed after that; None is no limit but the sandbox's own.
            on_output: Called with each chunk as it comes, before any truncation; what it raises kills the
                command and is raised.

        Returns:
            The command's: `usage` is its own and that of children that it waited for, `limits` has what was cut of
            its output alone. Where the whole sandbox ended meanwhile, how that ended, with the output until then.

        Raises:
            CommandNotFound: no such executable or cwd inside, or more arguments than fit.
            SetupError: the sandbox has ended before.

        A cancelled caller goes on when the command is killed.
        """
        if self._process.result is not None:
            raise SetupError(f"the sandbox has ended: {self._process.result.reason}")
        asked = {"argv": list(argv), "cwd": cwd, "env": dict(env or {})}
        if not argv or not all(argv[:1]) or "\0" in "".join((*argv, cwd)):
            raise CommandNotFound("EINVAL", "the command is empty, or a NUL character is in it")
        number = next(self._numbers)
        self._answers[number] = deque()
        account = _Account(self._keep_bytes, on_output)
        timed_out = False
        try:
            with anyio.move_on_after(math.inf if wall_seconds is None else wall_seconds) as scope:
                await self._send(number, RUN, json.dumps(asked).encode() + b"\n" + stdin)
                await self._take_in(number, account)
            if timed_out := scope.cancelled_caught:
                await self._kill(number, account)
        except anyio.EndOfStream:
            return await self._ended(account)
        except BaseException:
            account.on_output = None
            with anyio.CancelScope(shield=True):
                await self._kill(number, account)
            raise
        finally:
            del self._answers[number]
        if account.end is None:
            return await self._ended(account)
        if account.end.get("status") == signal.SIGKILL and self._process.met_memory_limit():
            self.kill()  # as will be done with all of it, now or in a moment
            return await self._ended(account)
        return self._result(argv[0], cwd, account, account.end, timed_out=timed_out)

    def kill(self) -> None:
        """End it and everything in it: SIGKILL."""
        self._process.kill()

    async def aclose(self) -> None:
        """End it; returns when nothing of it is left."""
        await self._process.aclose()

    def drop(self) -> None:
        """As `Process.drop`."""
        self._process.drop()

    async def _stand(self) -> None:
        """Wait until it can run commands. Raises `SetupError`."""
        try:
            await self._take_in(0, _Account(0, None))
            del self._answers[0]
        except anyio.EndOfStream:
            try:
                ended = await self._process.wait()
            except CommandNotFound as error:
                raise SetupError(_needs_python(error)) from error
            raise SetupError(_needs_python(ended.reason)) from None

    async def _send(self, number: int, kind: bytes, what: bytes = b"") -> None:
        """Raises `EndOfStream` when it has ended."""
        left = memoryview(HEAD.pack(number, kind, len(what)) + what)
        begun = False
        with anyio.CancelScope(shield=True):
            async with self._sending:
                while left:
                    piece = bytes(left[: select.PIPE_BUF])  # which is sent whole or not at all
                    if not self._process.stdin.send_now(piece):
                        with anyio.move_on_after(_PATIENCE_SECONDS) as patience:
                            try:
                                await self._process.stdin.send(piece)
                            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                                raise anyio.EndOfStream from None
                            except BaseException:  # in asyncio's own way, which knows no shield
                                if begun:  # nobody would understand what comes after half a message
                                    self.kill()
                                raise
                        if patience.cancelled_caught:
                            self.kill()
                            return
                    begun, left = True, left[len(piece) :]

    async def _take_in(self, number: int, account: _Account) -> None:
        """Read until the run with that number has ended. Raises `EndOfStream` when the sandbox has."""
        answers = self._answers[number]
        while True:
            while answers:
                kind, what = answers.popleft()
                if kind in (END, READY):
                    if kind == END:
                        account.end = _parsed(what)
                    if (account.end is None) == (number > 0):  # 0 is none that ends
                        raise self._deceived()
                    return
                account.add("stdout" if kind == OUT else "stderr", what)
            async with self._reading:
                if not answers:
                    await self._hear()

    async def _hear(self) -> None:
        """Read the next answer, whosever it is. Cancelled, it has lost nothing."""
        while len(self._heard) < HEAD.size:
            self._heard += await self._receive()
        number, kind, length = HEAD.unpack_from(self._heard)
        most = {OUT: CHUNK_BYTES, ERR: CHUNK_BYTES, END: _SAID_BYTES, READY: 0}.get(kind, -1)
        if length > most:
            raise self._deceived()
        while len(self._heard) < HEAD.size + length:
            self._heard += await self._receive()
        what = bytes(self._heard[HEAD.size : HEAD.size + length])
        del self._heard[: HEAD.size + length]
        if number in self._answers:  # else of one that nobody waits for any more
            self._answers[number].append((kind, what))

    def _deceived(self) -> anyio.EndOfStream:
        """Somebody inside answers in the attendant's place: nobody is to listen any more."""
        self.kill()
        return anyio.EndOfStream()

    async def _receive(self) -> bytes:
        try:
            return await self._process.stdout.receive()
        except anyio.ClosedResourceError:
            raise anyio.EndOfStream from None

    async def _kill(self, number: int, account: _Account) -> None:
        """Have a command killed, and read until it has ended; end all where that does not come."""
        with anyio.move_on_after(_PATIENCE_SECONDS) as patience:
            try:
                if not self._process.stdin.send_now(HEAD.pack(number, KILL, 0)):
                    await self._send(number, KILL)
                await self._take_in(number, account)
            except anyio.EndOfStream:
                return
        if patience.cancelled_caught:
            self.kill()

    async def _ended(self, account: _Account) -> Result:
        """The end of the sandbox as that of a command which was in it."""
        ended = await self._process.wait()
        return dataclasses.replace(ended, **account.output())

    def _result(
        self, name: str, cwd: str, account: _Account, end: Mapping[str, Any], *, timed_out: bool
    ) -> Result:
        if "code" in end:
            if end["cwd"]:
                raise CommandNotFound(
                    "ENOENT", f"cwd {cwd!r} does not exist in the sandbox (ENOENT)"
                )
            raise not_found(name, str(end["code"]))
        status = int(end["status"])
        exited = os.WIFEXITED(status)
        reason: Reason = "timed_out" if timed_out else "exited" if exited else "signaled"
        used = {name: end[name] for name in _USED}
        return Result(
            exit_code=os.WEXITSTATUS(status) if exited else None,
            signal=None if exited else os.WTERMSIG(status),
            reason=reason, wall_seconds=time.monotonic() - account.began,
            usage=Usage(counted_by="rusage", **used), limits=account.limits(),
            enforcement=self._enforcement, **account.output(),
        )  # fmt: skip


_USED = ("cpu_seconds", "memory_peak_bytes", "read_bytes", "written_bytes")


def _parsed(what: bytes) -> dict[str, Any] | None:
    """What an attendant says of an end; None where it is no attendant's."""
    try:
        said = json.loads(what)
        if "code" in said:
            return {"code": str(said["code"])[:20], "cwd": bool(said["cwd"])}
        status, *used = (said[name] for name in ("status", *_USED))
    except (ValueError, TypeError, KeyError):
        return None
    numbers = all(type(figure) in (int, float) and 0 <= figure < 1 << 62 for figure in used)
    return said if numbers and type(status) is int and 0 <= status < 1 << 16 else None


class _Account:
    """What has come of one command."""

    def __init__(self, keep_bytes: int, on_output: OnOutput | None) -> None:
        self.began = time.monotonic()
        self.on_output = on_output
        self.end: dict[str, Any] | None = None
        self._keep_bytes = keep_bytes
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._written = {"stdout": 0, "stderr": 0}

    def add(self, name: Any, data: bytes) -> None:
        kept = self._kept[name]
        kept += data[: self._keep_bytes - len(kept)]
        self._written[name] += len(data)
        if self.on_output is not None:
            self.on_output(name, data)

    def output(self) -> dict[str, Any]:
        """Fields of a `Result`."""
        return {
            **{name: bytes(kept) for name, kept in self._kept.items()},
            **{f"{name}_bytes": written for name, written in self._written.items()},
        }

    def limits(self) -> tuple[Limit, ...]:
        written, limit = sum(self._written.values()), self._keep_bytes
        if written <= sum(map(len, self._kept.values())):
            return ()
        return (Limit(key="resources.output_limit", limit=limit, used=written, unit="bytes", effect="cut"),)  # fmt: skip


async def stand(
    engine: Engine, session: Hashable, name: str, wall_seconds: float | None
) -> Sandbox:
    """Have one; arguments and errors as of `Engine.sandbox`."""
    python = os.path.realpath(sys.executable)
    try:
        process = await engine.start(
            [python, "-I", "-S", "-c", _program()], session=session, name=name,
            wall_seconds=wall_seconds,
        )  # fmt: skip
    except CommandNotFound as error:
        raise SetupError(_needs_python(error)) from error
    sandbox = Sandbox(engine, process)
    try:
        await sandbox._stand()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await sandbox.aclose()
        raise
    return sandbox


@cache
def _program() -> str:
    return inside.bundle(("attendant",), "package.attendant.main()")


def _needs_python(why: object) -> str:
    return f"a sandbox for several commands needs Python inside: {why}"
