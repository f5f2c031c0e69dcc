"""The public face: `Engine` runs commands and file operations under one policy, each in a sandbox.

Theory of operation
    The engine holds a keeper with its zygote (link.py) and sandboxes that are ready (pool.py):
    locked down, in their cgroup, their pid 1 waiting for its order. A run takes one, sends the
    order, and asks for a replacement. The result is returned when the kernel says that the whole
    pid namespace is gone. Whoever stops waiting kills it. What becomes of one command is
    execution.py's. A file operation goes to a sandbox whose command has been launched already: an
    interpreter that holds fileops.py and waits for one request on its stdin. A process (process.py)
    has a sandbox made for it, whose pipes are its caller's.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import fallback, inside
from .cancellation import uncancelled
from .command import Command, resolve
from .enforcement import Enforcement, enforcement_of
from .errors import CommandNotFound, EnforcementError, OperationError, SetupError
from .execution import Execution, Shared
from .guard import Guard
from .link import Link
from .loopthread import is_on_asyncio
from .plan import compile_plan
from .pool import Pool, Ready, prepare
from .result import Result
from .seccomp import compile_operation_filter
from .started import Started
from .streams import OnOutput
from .view import View
from .ways import Membership, Ways

if TYPE_CHECKING:
    from ..policies import Grant, Policy
    from .abroad import Abroad
    from .egress.dial import Resolve
    from .pipes import Stderr, Stdin
    from .process import Held, Process

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
        RuntimeError: on entering, without an event loop.

    It lives on asyncio's loop: the caller's, or, where that is trio's, one in a thread of its own, to
    which calls are handed (abroad.py); `resolve` is called there, and `on_output` by its caller's task.
    """

    def __init__(
        self, policy: Policy, workspace: Path | None, *, resolve: Resolve | None = None,
        trust: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.policy = policy
        self._resolve = resolve
        self._trust = tuple(trust)
        self.workspace = workspace
        self._link = Link()
        self._ways = Ways(self._link)
        self._abroad: Abroad | None = None
        self._shared: Shared | None = None
        self._processes: set[Held] = set()
        self._commands = Pool(
            self._make_command, self._discard, least=_LEAST_READY, most=_MOST_READY
        )
        # An interpreter takes a second core's ten milliseconds to start and megabytes to wait: the
        # first is made when the first operation comes.
        self._operators = Pool(self._make_operator, self._discard, least=0, most=2)

    @property
    def _entered(self) -> Shared:
        if self._shared is None:
            raise RuntimeError("the engine has not been entered")
        return self._shared

    @property
    def enforcement(self) -> Enforcement:
        """What holds for every sandbox of this engine. Raises `RuntimeError` before entering."""
        return self._entered.enforcement

    @property
    def view(self) -> View:
        """What its sandboxes see, asked from outside. Raises `RuntimeError` before entering."""
        return View(self.policy, self._entered.plan, self._entered.guard)

    async def __aenter__(self) -> Engine:
        if not is_on_asyncio():
            from .abroad import Abroad

            self._abroad = Abroad(
                Engine(self.policy, self.workspace, resolve=self._resolve, trust=self._trust)
            )
            engine = await self._abroad.enter()
            self._shared, self._ways = engine._shared, engine._ways
            self._processes = engine._processes
            return self
        try:
            self._shared = await self._build()
            self._commands.start()  # their sandboxes are asked for before it is known that there is a view
            self._operators.start()
            await self._link.built()
            self._ways.listen(self.policy.network)
        except BaseException:
            await uncancelled(self._end())
            raise
        return self

    async def _build(self) -> Shared:
        network, files = self.policy.network, self.policy.filesystem
        await self._link.begin()
        egress = await self._ways.prepare(network, self._resolve, self._trust)
        plan = compile_plan(
            self.policy, self.workspace,
            authority=egress.certificate if egress is not None else "",
            variables=egress.environment if egress is not None else {},
            hosts=egress.hosts_file if egress is not None else "",
        )  # fmt: skip
        found = await self._link.open(plan)
        enforcement = enforcement_of(found, plan)
        # What the policy accepts to lose it does not require: fallback.py.
        waived = () if plan.namespaces else fallback.waived()
        required = tuple(layer for layer in self.policy.require if layer not in waived)
        if missing := enforcement.missing(required):
            raise EnforcementError(
                f"policy {self.policy.name} requires more than this host enforces: "
                + "; ".join(missing)
                + ". Run `purple doctor`, or take the layer out of the policy's `require`."
            )
        self._ways.shares = plan.namespaces and network.loopback == "session"
        protect = files.protect if plan.workspace_writable else ()
        return Shared(
            policy=self.policy, plan=plan, enforcement=enforcement, link=self._link,
            guard=Guard(plan.workspace, files.hide, protect), ways=self._ways,
        )  # fmt: skip

    def program(self, argv: Sequence[str]) -> str:
        """Absolute path of what `argv` starts. Raises `CommandNotFound`."""
        return resolve(self._entered.plan, argv, "", None).program

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every sandbox, the zygote and the keeper; returns when they are gone."""
        if self._abroad is not None:
            await self._abroad.aclose()
        else:
            await uncancelled(self._end())

    @property
    def credentials(self) -> Mapping[str, str]:
        """Names and values of what its egress puts into requests; {} before it has been entered."""
        return self._ways.credentials

    async def _end(self) -> None:
        for held in self._processes:
            held.execution.kill()
        if self._processes:
            await asyncio.wait({held.task for held in self._processes})
        await self._commands.aclose()
        await self._operators.aclose()
        await self._close()

    async def _close(self) -> None:
        self._ways.close_ports()
        await self._link.close()
        self._ways.close_all()

    async def run(
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
        """Run `argv` in a sandbox of its own and wait until nothing of it is left.

        Args:
            argv: The command; `argv[0]` is looked up in the sandbox's PATH.
            cwd: Relative to the workspace, or absolute inside; "" is the workspace.
            env: Added to the policy's environment.
            stdin: Given to the command; empty is /dev/null.
            wall_seconds: Killed after that; the policy's `timeout` bounds it.
            on_output: Called with each chunk as it comes, before any truncation.
            session: On its localhost are the ports of what was `start`ed with an equal one, unless
                the policy says `network.loopback: sandbox`. None: of nobody.

        Raises:
            CommandNotFound: no such executable or cwd inside.
            SetupError: the sandbox could not be built.

        A cancelled caller leaves nothing behind: the sandbox is killed first.
        """
        if self._abroad is not None:
            return await self._abroad.run(argv, cwd, env, stdin, wall_seconds, on_output, session)
        command = resolve(self._entered.plan, argv, cwd, env)
        pooled = not stdin
        ready = await (self._take(self._commands) if pooled else self._prepare("pipe"))
        if not pooled:
            self._ways.open(ready.started)
        for output in (ready.stdout, ready.stderr):
            output.keep_bytes = self.policy.resources.output_bytes
            output.on_output = on_output
        membership = None if session is None else Membership(session)
        try:
            return await self._complete(
                ready, argv[0], lambda: self._start(ready, command, stdin), wall_seconds, membership
            )
        finally:
            if pooled:
                self._commands.done()

    async def start(
        self, argv: Sequence[str], *, cwd: str = "", env: Mapping[str, str] | None = None,
        stdin: Stdin = "pipe", stderr: Stderr = "pipe", wall_seconds: float | None = None,
        session: Hashable = None, name: str = "process",
    ) -> Process:  # fmt: skip
        """Start `argv` in a sandbox of its own and talk with it while it runs.

        Args:
            argv, cwd, env, wall_seconds, session: As in `run`.
            name: What results of the session's others call it, whose programs reach its ports.
            stdin: "pipe", or "null" for /dev/null.
            stderr: "pipe", or "stdout" for the same pipe as that, in the order of writing.

        Raises:
            CommandNotFound, SetupError: as `run`; see `Process.wait`, too.

        All that the policy grants and limits holds for it as for `run`, but for `output_limit`: nothing
        is kept, so nothing is cut. Ports of `network.listen` lead to it while it runs.
        """
        from .process import Process

        membership = None if session is None else Membership(session, name)
        held = await self._spawn(argv, cwd, env, stdin, stderr, wall_seconds, membership)
        return Process(held)

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
        if self._abroad is not None:
            return await self._abroad.call(operation, arguments, grant)
        question = json.dumps(
            {"operation": operation, "arguments": dict(arguments), "grant": _kept(grant)}
        ).encode()
        ready = await self._take(self._operators)
        if grant is not None and grant.hosts:
            self._ways.open(ready.started, grant.hosts)
        else:
            ready.started.close_doors()  # it has no business with the network
        try:
            result = await self._complete(
                ready, sys.executable, lambda: ready.write_stdin(question)
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

        On asyncio's event loop alone, like its queue.
        """
        if self._abroad is not None:
            raise RuntimeError("run_with needs asyncio's event loop; elsewhere use start")
        shared = self._entered
        command = resolve(shared.plan, argv, cwd, env)
        tty = [i for i, fd in enumerate(fds) if os.isatty(fd)] if terminal is not None else []
        marks = shared.look()
        started = await self._link.spawn(fds, marks, tty)
        self._ways.open(started)
        if terminal is not None:
            terminal(started.master)
        forward = asyncio.create_task(self._forward(signals, started))
        execution = Execution(shared, started, marks, argv[0])
        try:
            return await execution.carry_out(lambda: self._link.launch(started, command))
        finally:
            forward.cancel()
            self._link.gone(started)

    async def _spawn(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None, stdin: Stdin,
        stderr: Stderr, wall_seconds: float | None, membership: Membership | None = None,
    ) -> Held:  # fmt: skip
        """As `start`; SyncEngine's way to a process, too."""
        if self._abroad is not None:
            return await self._abroad.spawn(argv, cwd, env, stdin, stderr, wall_seconds, membership)
        from .process import spawn

        held = await spawn(
            self._entered, argv, cwd=cwd, env=env, stdin=stdin, stderr=stderr,
            wall_seconds=wall_seconds, membership=membership,
        )  # fmt: skip
        self._processes.add(held)
        held.task.add_done_callback(lambda _: self._processes.discard(held))
        return held

    async def _prepare(self, stdin: Literal["null", "pipe"]) -> Ready:
        return await prepare(self._link, self._entered.look(), stdin)

    async def _take(self, pool: Pool) -> Ready:
        """One whose covers and read-only paths are those of now."""
        while (ready := await pool.take()).marks != self._entered.look():
            self._discard(ready)
            pool.done()
        return ready

    async def _make_command(self) -> Ready:
        ready = await self._prepare("null")
        self._ways.open(ready.started)
        return ready

    async def _make_operator(self) -> Ready:
        ready = await self._prepare("pipe")
        ready.stdout.keep_bytes = _MAX_OPERATION_BYTES
        ready.stderr.keep_bytes = 4096
        python = os.path.realpath(sys.executable)
        argv = [python, "-I", "-S", "-c", inside.program()]
        self._link.launch(ready.started, resolve(self._entered.plan, argv, "", None))
        return ready

    def _start(self, ready: Ready, command: Command, stdin: bytes) -> None:
        if ready.stdin >= 0:
            ready.write_stdin(stdin)
        self._link.launch(ready.started, command)

    async def _complete(
        self, ready: Ready, name: str, launch: Callable[[], None],
        asked_seconds: float | None = None, membership: Membership | None = None,
    ) -> Result:  # fmt: skip
        """Start what `ready` holds, wait for its end, and give it back."""
        execution = Execution(
            self._entered, ready.started, ready.marks, name, asked_seconds=asked_seconds,
            outputs=(ready.stdout, ready.stderr), membership=membership,
        )  # fmt: skip
        try:
            return await execution.carry_out(launch)
        finally:
            asyncio.get_running_loop().call_soon(self._discard, ready)  # after the caller goes on

    def _discard(self, ready: Ready) -> None:
        ready.started.kill()
        self._ways.drop(ready.started)
        ready.close()
        self._link.gone(ready.started)

    async def _forward(self, signals: asyncio.Queue[int], started: Started) -> None:
        while True:
            self._link.signal(started, await signals.get())


def _kept(grant: Grant | None) -> dict[str, Any] | None:
    """A grant for narrowing.py; None keeps all."""
    if grant is None or grant.scope != "call":
        return None
    program = compile_operation_filter(writes=bool(grant.write), connects=bool(grant.hosts))
    return {
        "read": grant.read, "write": grant.write, "filter": base64.b64encode(program).decode()
    }  # fmt: skip
