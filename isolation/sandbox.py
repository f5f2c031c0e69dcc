"""The public face: `Engine` runs commands and file operations under one policy, each in a sandbox.

Theory of operation
    The engine holds a keeper with its zygote (link.py) and sandboxes that are ready (pool.py):
    locked down, in their cgroup, their pid 1 waiting for its order. A run takes one, sends the
    order, and asks for a replacement. The result is returned when the kernel says that the whole
    pid namespace is gone. Whoever stops waiting kills it. A file operation goes to a sandbox whose
    command has been launched already: an interpreter that holds fileops.py and waits for one
    request on its stdin.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import inside
from .command import Command, not_found, resolve
from .enforcement import Enforcement, enforcement_of
from .errors import CommandNotFound, EnforcementError, OperationError, SetupError
from .guard import Guard
from .limits import Ended, reached, tail
from .link import Link
from .marks import Marks
from .plan import Plan, compile_plan
from .pool import Pool, Ready, prepare
from .result import Reason, Result
from .seccomp import compile_operation_filter
from .started import Started
from .streams import OnOutput
from .usage import Counters, merge
from .view import View

if TYPE_CHECKING:
    from ..policies import Grant, Policy
    from ..policies.model import HostRule
    from .egress.connections import Connection
    from .egress.dial import Resolve
    from .egress.gate import Egress, Gate
    from .egress.publish import Inside, Publisher

_LEAST_READY, _MOST_READY = 2, 16
_MAX_OPERATION_BYTES = 64 << 20


class Engine:
    """Runs commands and file operations under one policy. Use as an async context manager.

    Args:
        policy: What is allowed.
        workspace: Directory seen at its own path; None gives none (cwd is then HOME).
        resolve: How the names of granted hosts are resolved; None is the host's own way.
        trust: Certificates, PEM, by which servers may identify themselves to the gateway, beside the
            host's own; for `tls: inspect`.

    Raises:
        SetupError: on entering, when the host cannot build the sandbox; says what to do.
        EnforcementError: on entering, when a layer in `policy.require` would not be full.
    """

    def __init__(
        self, policy: Policy, workspace: Path | None, *, resolve: Resolve | None = None,
        trust: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.policy = policy
        self._resolve = resolve
        self._trust = tuple(trust)
        self._egress: Egress | None = None
        self._gates: dict[int, Gate] = {}  # by number of their sandbox
        self._publisher: Publisher | None = None
        self._running: dict[int, Started] = {}  # for the publisher
        self.workspace = workspace
        self._enforcement: Enforcement | None = None
        self._plan: Plan | None = None
        self._link = Link()
        self._guard = Guard(None, (), ())
        self._commands = Pool(
            self._make_command, self._discard, least=_LEAST_READY, most=_MOST_READY
        )
        # An interpreter takes a second core's ten milliseconds to start and megabytes to wait: the
        # first is made when the first operation comes.
        self._operators = Pool(self._make_operator, self._discard, least=0, most=2)

    @property
    def _entered(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("the engine has not been entered")
        return self._plan

    @property
    def enforcement(self) -> Enforcement:
        """What holds for every sandbox of this engine. Raises `RuntimeError` before entering."""
        if self._enforcement is None:
            raise RuntimeError("the engine has not been entered")
        return self._enforcement

    @property
    def view(self) -> View:
        """What its sandboxes see, asked from outside. Raises `RuntimeError` before entering."""
        return View(self.policy, self._entered, self._guard)

    async def __aenter__(self) -> Engine:
        self._plan = plan = await self._compile()
        files = self.policy.filesystem
        protect = files.protect if plan.workspace_writable else ()
        self._guard = Guard(plan.workspace, files.hide, protect)
        try:
            found = await self._link.open(plan)
            self._enforcement = enforcement_of(found, plan)
            if missing := self._enforcement.missing(self.policy.require):
                raise EnforcementError(
                    f"policy {self.policy.name} requires more than this host enforces: "
                    + "; ".join(missing)
                    + ". Run `purple doctor`, or take the layer out of the policy's `require`."
                )
            if self._egress is not None and self.policy.network.listen:
                from .egress.publish import Publisher

                self._publisher = Publisher(self.policy.network.listen, self._inside)
        except BaseException:
            await self._close()
            raise
        self._commands.start()
        self._operators.start()
        return self

    def program(self, argv: Sequence[str]) -> str:
        """Absolute path of what `argv` starts. Raises `CommandNotFound`."""
        return resolve(self._entered, argv, "", None).program

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every sandbox, the zygote and the keeper; returns when they are gone."""
        await self._commands.aclose()
        await self._operators.aclose()
        await self._close()

    @property
    def credentials(self) -> dict[str, str]:
        """Names and values of what its egress puts into requests; {} before it has been entered."""
        return {} if self._egress is None else self._egress.vault.values

    async def _close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        await self._link.close()
        for gate in self._gates.values():
            gate.close()
        self._gates.clear()
        if self._egress is not None:
            self._egress.close()

    async def _compile(self) -> Plan:
        network = self.policy.network
        if network.isolated:
            return compile_plan(self.policy, self.workspace)
        from .egress.gate import Egress  # a tenth of a second that only those with network pay

        self._egress = egress = await asyncio.to_thread(
            Egress, network, resolve=self._resolve, trust=self._trust
        )
        return compile_plan(
            self.policy, self.workspace, authority=egress.certificate,
            variables=egress.environment,
        )  # fmt: skip

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
        command = resolve(self._entered, argv, cwd, env)
        limit = self.policy.resources.wall_seconds
        if wall_seconds is not None:
            limit = wall_seconds if limit is None else min(limit, wall_seconds)
        pooled = not stdin
        ready = await (self._take(self._commands) if pooled else self._prepare("pipe"))
        if not pooled:
            self._open_gate(ready.started)
        for output in (ready.stdout, ready.stderr):
            output.keep_bytes = self.policy.resources.output_bytes
            output.on_output = on_output
        try:
            return await self._complete(
                ready, argv[0], limit, lambda: self._start(ready, command, stdin)
            )
        finally:
            if pooled:
                self._commands.done()

    async def call(
        self, operation: str, arguments: Mapping[str, Any], *, grant: Grant | None = None
    ) -> Result:
        """Do a file operation (fileops.py) inside a sandbox; its JSON is `Result.value`.

        Args:
            operation: Its name.
            arguments: As it takes them; relative paths begin in the workspace.
            grant: What of the policy it keeps, held by the kernel (narrowing.py); None keeps all.
                Its paths lead through no symbolic link: see `View.follow`. Without `hosts`, there
                is no network for it whatever the policy allows.

        Raises:
            OperationError: refused by the kernel (`code` is errno's name) or invalid (EINVAL);
                ELOOP where a link has come into the way of a path of the grant.
            SetupError: the sandbox could not be built, or has no interpreter in its view.
        """
        question = json.dumps(
            {"operation": operation, "arguments": dict(arguments), "grant": _kept(grant)}
        ).encode()
        ready = await self._take(self._operators)
        if grant is not None and grant.hosts:
            self._open_gate(ready.started, grant.hosts)
        else:
            ready.started.close_doors()  # it has no business with the network
        try:
            limit = self.policy.resources.wall_seconds
            result = await self._complete(
                ready, sys.executable, limit, lambda: ready.write_stdin(question)
            )
        except CommandNotFound as error:
            raise SetupError(f"file tools need Python inside the sandbox: {error}") from error
        finally:
            self._operators.done()
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            said = result.stderr.decode(errors="replace")[-200:]
            raise OperationError(
                "EIO", f"{operation} was ended: {result.reason} {said}".rstrip()
            ) from None
        if "code" in answer:
            raise OperationError(answer["code"], answer["message"])
        narrowed = None
        if grant is not None:
            narrowed = {**grant.to_json(), "landlock_abi": answer["landlock_abi"]}
        return dataclasses.replace(
            result, value=answer["value"], narrowed=narrowed, stdout=b"", stdout_bytes=0
        )

    async def run_with(
        self,
        argv: Sequence[str],
        fds: tuple[int, int, int],
        *,
        signals: asyncio.Queue[int],
        terminal: Callable[[int], None] | None = None,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run `argv` on the caller's own descriptors, as `purple run` does.

        Args:
            argv: The command.
            fds: Its stdin, stdout, stderr; still the caller's to close.
            signals: Numbers put here are sent to the command's process group.
            terminal: When given, the command gets a terminal of the sandbox's own in place of each
                of `fds` that is one; called with its other side before the command starts.
            cwd, env: As in `run`.
        """
        command = resolve(self._entered, argv, cwd, env)
        tty = [i for i, fd in enumerate(fds) if os.isatty(fd)] if terminal is not None else []
        marks = self._look()
        started = await self._link.spawn(fds, marks, tty)
        self._open_gate(started)
        began = time.monotonic()
        if terminal is not None:
            terminal(started.master)
        forward = asyncio.create_task(self._forward(signals, started))
        try:
            self._running[started.number] = started
            self._link.launch(started, command)
            end, timed_out = await _end(started, self.policy.resources.wall_seconds)
        finally:
            forward.cancel()
            await asyncio.shield(started.gone())
            counters = self._count(started)
            connections = await asyncio.shield(self._close_gate(started))
            self._link.gone(started)
        moved = self._guard.move_aside(marks)
        _refused(end, argv[0])
        wall = time.monotonic() - began
        return self._result(end, timed_out, None, counters, wall, moved, connections)

    def _look(self) -> Marks:
        try:
            return self._guard.look()
        except ValueError as error:
            raise SetupError(str(error)) from error

    async def _prepare(self, stdin: Literal["null", "pipe"]) -> Ready:
        return await prepare(self._link, self._look(), stdin)

    def _open_gate(self, started: Started, only: Sequence[HostRule] | None = None) -> None:
        """Take its doors, before its command starts; `only` as in `Egress.open`."""
        doors, started.doors = started.doors, []
        if self._egress is not None and doors:
            self._gates[started.number] = self._egress.open(doors, only)

    def _inside(self) -> list[Inside]:
        """What the publisher needs of each sandbox that runs a command."""
        return [
            (gate.ledger, partial(self._link.socket_inside, started))
            for number, started in self._running.items()
            if (gate := self._gates.get(number)) is not None
        ]

    async def _close_gate(self, started: Started) -> tuple[Connection, ...]:
        self._running.pop(started.number, None)
        gate = self._gates.pop(started.number, None)
        return await gate.aclose() if gate is not None else ()

    async def _take(self, pool: Pool) -> Ready:
        """One whose covers and read-only paths are those of now."""
        while (ready := await pool.take()).marks != self._look():
            self._discard(ready)
            pool.done()
        return ready

    async def _make_command(self) -> Ready:
        ready = await self._prepare("null")
        self._open_gate(ready.started)
        return ready

    async def _make_operator(self) -> Ready:
        ready = await self._prepare("pipe")
        ready.stdout.keep_bytes = _MAX_OPERATION_BYTES
        ready.stderr.keep_bytes = 4096
        python = os.path.realpath(sys.executable)
        argv = [python, "-I", "-S", "-c", inside.program()]
        self._link.launch(ready.started, resolve(self._entered, argv, "", None))
        return ready

    def _start(self, ready: Ready, command: Command, stdin: bytes) -> None:
        if ready.stdin >= 0:
            ready.write_stdin(stdin)
        self._link.launch(ready.started, command)

    async def _complete(
        self, ready: Ready, name: str, limit: float | None, start: Callable[[], None]
    ) -> Result:
        """Start what `ready` holds, wait for its end, and give it back."""
        started = ready.started
        began = time.monotonic()
        try:
            self._running[started.number] = started
            start()
            end, timed_out = await _end(started, limit)
        finally:
            # Shielded: a caller that is cancelled again must not leave the sandbox behind.
            await asyncio.shield(started.gone())
            counters = self._count(started)
            connections = await asyncio.shield(self._close_gate(started))
            moved = self._guard.move_aside(ready.marks)
            for output in (ready.stdout, ready.stderr):
                output.drain()
            asyncio.get_running_loop().call_soon(self._discard, ready)  # after the caller goes on
        _refused(end, name)
        wall = time.monotonic() - began
        return self._result(end, timed_out, limit, counters, wall, moved, connections, ready)

    def _discard(self, ready: Ready) -> None:
        ready.started.kill()
        if gate := self._gates.pop(ready.started.number, None):
            gate.close()
        ready.close()
        self._link.gone(ready.started)

    async def _forward(self, signals: asyncio.Queue[int], started: Started) -> None:
        while True:
            self._link.signal(started, await signals.get())

    def _count(self, started: Started) -> Counters | None:
        return started.cgroup.count(self._entered) if started.cgroup is not None else None

    def _result(
        self, report: Mapping[str, Any], timed_out: bool, asked: float | None,
        counters: Counters | None, wall: float, moved: tuple[str, ...],
        connections: tuple[Connection, ...], ready: Ready | None = None,
    ) -> Result:  # fmt: skip
        stdout, stderr = (ready.stdout, ready.stderr) if ready else (None, None)
        end = Ended(
            wall_seconds=wall, asked_seconds=asked, timed_out=timed_out, report=report,
            counters=counters, usage=merge(counters, report),
            kept=sum(len(output.kept) for output in (stdout, stderr) if output),
            written=sum(output.total_bytes for output in (stdout, stderr) if output),
            tail=tail(stderr.kept) if stderr else b"",
        )  # fmt: skip
        status = report.get("status")
        reason: Reason = "signaled"
        exit_code: int | None = None
        number: int | None = int(signal.SIGKILL)
        if timed_out:
            reason = "timed_out"
        elif end.out_of_memory:
            reason = "out_of_memory"
        elif isinstance(status, int):
            if os.WIFEXITED(status):
                reason, exit_code, number = "exited", os.WEXITSTATUS(status), None
            else:
                number = os.WTERMSIG(status)
        return Result(
            exit_code=exit_code, signal=number, reason=reason, wall_seconds=wall,
            stdout=bytes(stdout.kept) if stdout else b"",
            stderr=bytes(stderr.kept) if stderr else b"",
            stdout_bytes=stdout.total_bytes if stdout else 0,
            stderr_bytes=stderr.total_bytes if stderr else 0,
            enforcement=self.enforcement, moved_aside=moved, connections=connections,
            usage=end.usage,
            limits=reached(self.policy, end),
        )  # fmt: skip


def _kept(grant: Grant | None) -> dict[str, Any] | None:
    """A grant for narrowing.py; None keeps all."""
    if grant is None or grant.scope != "call":
        return None
    program = compile_operation_filter(writes=bool(grant.write), connects=bool(grant.hosts))
    return {
        "read": grant.read, "write": grant.write, "filter": base64.b64encode(program).decode()
    }  # fmt: skip


async def _end(started: Started, limit: float | None) -> tuple[dict[str, Any], bool]:
    """The zygote's report, and whether the limit came first."""
    late: list[bool] = []

    def expire() -> None:
        late.append(True)
        started.kill()

    timer = None if limit is None else asyncio.get_running_loop().call_later(limit, expire)
    try:
        end = await asyncio.shield(started.end)
    finally:
        if timer is not None:
            timer.cancel()
    return end, bool(late)


def _refused(end: Mapping[str, Any], name: str) -> None:
    if code := end.get("refused"):
        raise not_found(name, code)
    if error := end.get("error"):
        raise SetupError(f"the sandbox could not be closed: {error}")
