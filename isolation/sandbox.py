"""The public face: `Engine` starts sandboxes of one policy and runs one thing in each.

Theory of operation
    The engine holds a keeper (keeper.py) and a few sandboxes that are ready: locked down, their
    pid 1 waiting on a socket. A run takes one, sends it the request with three descriptors, and
    asks the keeper for the next. The result is returned when the sandbox's pidfd says that its
    whole pid namespace is gone. Whoever stops waiting kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .enforcement import Enforcement, Layer
from .errors import CommandNotFound, EnforcementError, OperationError, SetupError
from .plan import Plan, compile_plan
from .result import Reason, Result

if TYPE_CHECKING:
    from ..policies import Policy

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]
_READY = 2  # sandboxes kept waiting; each costs about a megabyte
_MAX_OPERATION_BYTES = 64 << 20


class Sandbox:
    """One sandbox, ready for one request. Made by `Engine`."""

    def __init__(self, number: int, control: socket.socket, pidfd: int) -> None:
        self.number = number
        self.control = control
        self.pidfd = pidfd
        control.setblocking(False)

    async def messages(self) -> dict[str, Any]:
        """The next message of pid 1; {} when it ended without one."""
        loop = asyncio.get_running_loop()
        try:
            data = await loop.sock_recv(self.control, 1 << 16)
        except ConnectionResetError:
            data = b""
        try:
            message = json.loads(data or b"{}")
        except ValueError:
            message = {}
        return message if isinstance(message, dict) else {}

    async def gone(self) -> None:
        """Wait until every process of the sandbox has ended."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def ended() -> None:
            if not done.done():
                done.set_result(None)

        loop.add_reader(self.pidfd, ended)
        try:
            await done
        finally:
            loop.remove_reader(self.pidfd)

    def kill(self) -> None:
        """SIGKILL to pid 1, and so to everything in its pid namespace."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close both descriptors; the end of the control socket ends a sandbox that waits."""
        self.control.close()
        os.close(self.pidfd)


class Engine:
    """Runs commands and file operations under one policy. Use as an async context manager.

    Args:
        policy: What is allowed.
        workspace: Directory seen at its own path; None gives none (cwd is then HOME).

    Raises:
        SetupError: on entering, when the host cannot build the sandbox; says what to do.
        EnforcementError: on entering, when a layer in `policy.require` would not be full.
    """

    def __init__(self, policy: Policy, workspace: Path | None) -> None:
        self.policy = policy
        self.workspace = workspace
        self._plan: Plan | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._enforcement: Enforcement | None = None
        self._ready: asyncio.Queue[Sandbox | SetupError] = asyncio.Queue()
        self._preparing: set[asyncio.Task[None]] = set()
        self._spawned: asyncio.Queue[tuple[dict[str, Any], list[int]]] = asyncio.Queue()
        self._spawning = asyncio.Lock()
        self._usage: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @property
    def enforcement(self) -> Enforcement:
        """What holds for every sandbox of this engine. Raises `RuntimeError` before entering."""
        if self._enforcement is None:
            raise RuntimeError("the engine has not been entered")
        return self._enforcement

    async def __aenter__(self) -> Engine:
        self._plan = compile_plan(self.policy, self.workspace)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).resolve().parents[1])
        if Path(root).name != "purplebox":  # run from a checkout: the folders stand beside src/
            root = f"{root}/src/purplebox"
        code = (
            f"import sys; sys.path.insert(0, {os.path.dirname(root)!r}); "
            f"from purplebox.isolation.keeper import main; main({theirs.fileno()})"
        )
        # An empty environment: /proc/1/environ inside has nothing to show.
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            pass_fds=[theirs.fileno()], env={}, stdin=subprocess.DEVNULL, start_new_session=True,
            cwd="/",
        )  # fmt: skip
        theirs.close()
        self._link = ours
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(ours, self._plan.to_json())
            hello = json.loads(
                await loop.sock_recv(ours, 1 << 16) or b'{"error": "the keeper died"}'
            )
            if "error" in hello:
                raise SetupError(
                    f"the sandbox could not be built: {hello['error']}; "
                    "run `purple doctor` to see what this host lacks"
                )
            self._enforcement = _enforcement(hello, self._plan)
            if missing := self._enforcement.missing(self.policy.require):
                raise EnforcementError(
                    f"policy {self.policy.name} requires more than this host enforces: "
                    + "; ".join(missing)
                    + ". Run `purple doctor`, or take the layer out of the policy's `require`."
                )
        except BaseException:
            await self.aclose()
            raise
        loop.add_reader(ours, self._on_keeper)
        for _ in range(_READY):
            self._prepare()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every sandbox, the zygote and the keeper; returns when they are gone."""
        for task in list(self._preparing):
            task.cancel()
        if self._preparing:
            await asyncio.gather(*self._preparing, return_exceptions=True)
        while not self._ready.empty():
            if isinstance(waiting := self._ready.get_nowait(), Sandbox):
                waiting.close()
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
            self._link = None
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await asyncio.to_thread(keeper.wait)

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        wall_seconds: float | None = None,
        on_output: OnOutput | None = None,
    ) -> Result:
        """Run `argv` in a sandbox of its own and wait until nothing of it is left.

        Args:
            argv: The command; `argv[0]` is looked up in the sandbox's PATH.
            cwd: Relative to the workspace, or absolute inside; "" is the workspace.
            env: Added to the policy's environment.
            stdin: Given to the command; empty is /dev/null.
            wall_seconds: Killed after that; the policy's `timeout` bounds it.
            on_output: Called with each chunk as it comes, before any truncation.

        Raises:
            CommandNotFound: no such executable or cwd inside.
            SetupError: the sandbox could not be built.

        A cancelled caller leaves nothing behind: the sandbox is killed first.
        """
        if not argv or any("\0" in text for text in argv):
            raise CommandNotFound("EINVAL", "the command is empty or holds a NUL character")
        request = {"argv": list(argv), "cwd": cwd, "env": dict(env or {})}
        keep = self.policy.resources.output_bytes
        result, _ = await self._request(request, stdin, wall_seconds, on_output, keep)
        return result

    async def call(self, operation: str, arguments: Mapping[str, Any]) -> Result:
        """Do a file operation (fileops.py) inside a sandbox; its JSON is `Result.value`.

        Raises:
            OperationError: refused by the kernel (`code` is errno's name) or invalid (EINVAL).
        """
        request = {"operation": operation, "arguments": dict(arguments)}
        result, reply = await self._request(request, b"", None, None, _MAX_OPERATION_BYTES)
        try:
            answer = json.loads(reply)
        except ValueError:
            raise OperationError("EIO", f"{operation} was ended: {result.reason}") from None
        if "code" in answer:
            raise OperationError(answer["code"], answer["message"])
        fields = {**vars(result), "value": answer["value"], "stdout": b"", "stdout_bytes": 0}
        return Result(**fields)

    async def run_with(
        self, argv: Sequence[str], fds: tuple[int, int, int], *, terminal: int | None,
        signals: asyncio.Queue[int], cwd: str = "",
    ) -> Result:  # fmt: skip
        """Run `argv` on the caller's own descriptors, as `purple run` does.

        Args:
            argv: The command.
            fds: Its stdin, stdout, stderr; still the caller's to close.
            terminal: Which of the three is to be its controlling terminal; None for none.
            signals: Numbers put here are sent to the payload's process group.
            cwd: As in `run`.
        """
        request: dict[str, Any] = {
            "argv": list(argv), "cwd": cwd, "env": {}, "terminal": terminal,
        }  # fmt: skip
        sandbox = await self._take()
        started = time.monotonic()
        forward = asyncio.create_task(_forward(signals, sandbox))
        try:
            await self._send(sandbox, request, fds)
            end, timed_out = await self._end(sandbox, self.policy.resources.wall_seconds)
        finally:
            forward.cancel()
            usage = await self._finish(sandbox)
        self._refused(end, argv, cwd)
        return self._result(end, timed_out, usage, time.monotonic() - started, (b"", 0), (b"", 0))

    async def _request(
        self, request: Mapping[str, Any], stdin: bytes, wall_seconds: float | None,
        on_output: OnOutput | None, keep: int,
    ) -> tuple[Result, bytes]:  # fmt: skip
        limit = self.policy.resources.wall_seconds
        if wall_seconds is not None:
            limit = wall_seconds if limit is None else min(limit, wall_seconds)
        sandbox = await self._take()
        started = time.monotonic()
        outputs = [_Output("stdout", keep, on_output), _Output("stderr", keep, on_output)]
        source = _memory_file(stdin) if stdin else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        timed_out = False
        end: dict[str, Any] = {}
        try:
            try:
                await self._send(sandbox, request, (source, outputs[0].writer, outputs[1].writer))
            finally:
                os.close(source)
                for output in outputs:
                    output.close_writer()
            end, timed_out = await self._end(sandbox, limit)
        finally:
            usage = await self._finish(sandbox)
            for output in outputs:
                output.finish()
        self._refused(end, request.get("argv", ["?"]), request.get("cwd", ""))
        out, err = ((bytes(o.kept), o.total) for o in outputs)
        result = self._result(end, timed_out, usage, time.monotonic() - started, out, err)
        return result, out[0]

    async def _end(self, sandbox: Sandbox, limit: float | None) -> tuple[dict[str, Any], bool]:
        try:
            async with asyncio.timeout(limit):
                return await sandbox.messages(), False
        except TimeoutError:
            return {}, True

    async def _send(
        self, sandbox: Sandbox, request: Mapping[str, Any], fds: tuple[int, int, int]
    ) -> None:
        body = _memory_file(json.dumps(request).encode())
        try:
            socket.send_fds(sandbox.control, [b"request"], [body, *fds])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SetupError("the waiting sandbox has died; try again") from error
        finally:
            os.close(body)

    async def _finish(self, sandbox: Sandbox) -> dict[str, Any]:
        """Kill what is left, wait for it, and return what the cgroup counted."""
        sandbox.kill()

        async def finish() -> dict[str, Any]:
            await sandbox.gone()
            sandbox.close()
            if self._link is None:
                return {}
            loop = asyncio.get_running_loop()
            self._usage[sandbox.number] = future = loop.create_future()
            self._link.send(b"gone %d" % sandbox.number)
            usage: dict[str, Any] = await future
            return usage

        # Shielded: a caller that is cancelled again must not leave the sandbox behind.
        return await asyncio.shield(asyncio.create_task(finish()))

    def _refused(self, end: Mapping[str, Any], argv: Sequence[str], cwd: str) -> None:
        if code := end.get("refused"):
            if end.get("what") == "cwd":
                raise CommandNotFound(code, f"cwd {cwd!r} does not exist in the sandbox ({code})")
            why = "may not be executed" if code == "EACCES" else "is not in the sandbox's view"
            raise CommandNotFound(str(code), f"command {argv[0]!r} {why} ({code})")
        if failed := end.get("failed"):
            raise SetupError(f"the sandbox's pid 1 failed: {failed}")

    def _result(
        self, end: Mapping[str, Any], timed_out: bool, usage: Mapping[str, Any],
        wall_seconds: float, out: tuple[bytes, int], err: tuple[bytes, int],
    ) -> Result:  # fmt: skip
        status = end.get("status")
        reason: Reason = "signaled"
        exit_code: int | None = None
        number: int | None = int(signal.SIGKILL)
        if timed_out:
            reason = "timed_out"
        elif usage.get("oom_kills") or end.get("out_of_memory"):
            reason = "out_of_memory"
        elif isinstance(status, int):
            if os.WIFEXITED(status):
                reason, exit_code, number = "exited", os.WEXITSTATUS(status), None
            else:
                number = os.WTERMSIG(status)
        return Result(
            exit_code=exit_code, signal=number, stdout=out[0], stderr=err[0], stdout_bytes=out[1],
            stderr_bytes=err[1], reason=reason, wall_seconds=wall_seconds,
            cpu_seconds=usage.get("cpu_seconds"), memory_peak_bytes=usage.get("memory_peak_bytes"),
            enforcement=self.enforcement,
        )  # fmt: skip

    async def _take(self) -> Sandbox:
        if self._link is None:
            raise RuntimeError("the engine has not been entered, or is closed")
        if self._ready.empty() and not self._preparing:
            self._prepare()
        sandbox = await self._ready.get()
        self._prepare()
        if isinstance(sandbox, SetupError):
            raise sandbox
        return sandbox

    def _prepare(self) -> None:
        if self._ready.qsize() + len(self._preparing) >= _READY + 1:
            return
        task = asyncio.create_task(self._prepare_one())
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare_one(self) -> None:
        try:
            await self._ready.put(await self._spawn())
        except SetupError as error:
            await self._ready.put(error)

    async def _spawn(self) -> Sandbox:
        async with self._spawning:
            if self._link is None:
                raise SetupError("the engine is closed")
            self._link.send(b"spawn")
            answer, fds = await self._spawned.get()
        if "error" in answer or len(fds) != 2:
            for fd in fds:
                os.close(fd)
            raise SetupError(f"no sandbox could be started: {answer.get('error', 'keeper died')}")
        sandbox = Sandbox(answer["spawned"], socket.socket(fileno=fds[0]), fds[1])
        try:
            ready = await sandbox.messages()
        except BaseException:
            sandbox.kill()
            sandbox.close()
            raise
        if "ready" not in ready:
            await self._finish(sandbox)
            raise SetupError(
                f"the sandbox could not be locked down: {ready.get('error', 'it ended early')}"
            )
        return sandbox

    def _on_keeper(self) -> None:
        link = self._link
        if link is None:
            return
        message, fds, _, _ = socket.recv_fds(link, 1 << 16, 2, socket.MSG_CMSG_CLOEXEC)
        if not message:
            asyncio.get_running_loop().remove_reader(link)
            self._spawned.put_nowait(({"error": "the keeper died"}, []))
            for future in self._usage.values():
                if not future.done():
                    future.set_result({})
            return
        answer = json.loads(message)
        if "spawned" in answer:
            self._spawned.put_nowait((answer, fds))
        elif answer["gone"] in self._usage:
            self._usage.pop(answer["gone"]).set_result(answer["usage"])


class _Output:
    """One output pipe: read as it comes, kept up to a bound, counted in full."""

    def __init__(
        self, name: Literal["stdout", "stderr"], keep: int, on_output: OnOutput | None
    ) -> None:
        self.name: Literal["stdout", "stderr"] = name
        self.kept = bytearray()
        self.total = 0
        self._keep = keep
        self._on_output = on_output
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def close_writer(self) -> None:
        os.close(self.writer)

    def _read(self) -> None:
        try:
            data = os.read(self._reader, 1 << 18)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._open = False
            return
        self.total += len(data)
        if (room := self._keep - len(self.kept)) > 0:
            self.kept += data[:room]
        if self._on_output is not None:
            self._on_output(self.name, data)

    def finish(self) -> None:
        """Take what is left in the pipe, and close it. Call when every writer has ended."""
        while self._open:
            before = self.total
            self._read()
            if self.total == before:
                break
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)


async def _forward(signals: asyncio.Queue[int], sandbox: Sandbox) -> None:
    while True:
        number = await signals.get()
        with contextlib.suppress(OSError):
            sandbox.control.send(b"%d" % number)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("purple", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _enforcement(hello: Mapping[str, Any], plan: Plan) -> Enforcement:
    group, abi = hello["cgroup"], hello["landlock_abi"]
    limited = any(v is not None for v in (plan.memory_bytes, plan.cpu_cores, plan.processes))
    if group["version"] == 0:
        cgroup = Layer(
            status="partial" if limited else "none",
            reason=f"{group['reason']}; memory and processes are held by rlimits and a watcher, CPU is not",
        )
    else:
        cgroup = Layer(status="partial" if group["reason"] else "full", reason=group["reason"])
    if abi == 0:
        landlock = Layer(
            status="none", reason="the kernel has no Landlock; boot with lsm=landlock,…"
        )
    elif abi < 3:
        landlock = Layer(
            status="partial", reason=f"ABI {abi} cannot hold truncate(2); Linux 6.2 can"
        )
    else:
        landlock = Layer(status="full")
    full = Layer(status="full")
    return Enforcement(
        layers={
            "namespaces": full, "mounts": full, "capabilities": full, "landlock": landlock,
            "seccomp": full, "cgroup": cgroup, "network": full,
        }
    )  # fmt: skip
