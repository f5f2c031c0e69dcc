"""The public face: `Engine` runs commands and file operations under one policy, each in a sandbox.

Theory of operation
    The engine holds a keeper with its zygote (link.py) and sandboxes that are ready (pool.py):
    locked down, in their cgroup, their pid 1 waiting for its order. A run takes one, sends the
    order, and asks for a replacement. The result is returned when the kernel says that the whole
    pid namespace is gone. Whoever stops waiting kills it. What becomes of one command is
    execution.py's. A file operation (operation.py) goes to a sandbox whose command has been launched
    already: an interpreter that waits for one. A process (process.py) has a sandbox made for it, whose
    pipes are its caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import fallback
from .cancellation import uncancelled
from .command import Commands
from .enforcement import Enforcement, enforcement_of
from .errors import EnforcementError
from .execution import Execution, Shared
from .guard import Guard
from .link import Link
from .loopthread import is_on_asyncio
from .operation import Operation, have_interpreter
from .plan import compile_plan, compile_program
from .pool import Pool, Ready, prepare
from .result import Result
from .streams import OnOutput
from .view import View
from .ways import Membership, Ways

if TYPE_CHECKING:
    from ..policies import Grant, Policy
    from .abroad import Abroad
    from .egress.connections import Connection
    from .egress.dial import Resolve
    from .pipes import Stderr, Stdin
    from .process import Held, Process
    from .standing import Sandbox

_LEAST_READY, _MOST_READY = 2, 16


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
        least, most = _LEAST_READY, _MOST_READY
        self._commands = Pool(self._make_command, self._discard, least=least, most=most)
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

    @property
    def credentials(self) -> Mapping[str, str]:
        """Names and values of what its egress puts into requests; {} before it has been entered."""
        return self._ways.credentials

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
            await asyncio.sleep(0)  # now the first has been
            self._link.restrict(
                compile_program(self.policy, self._shared.plan)
            )  # while it is built
            await self._link.built()
            self._ways.listen(self.policy.network)
            return self
        except BaseException:
            await uncancelled(self._end())
            raise

    async def _build(self) -> Shared:
        network, files = self.policy.network, self.policy.filesystem
        await self._link.begin()
        egress = await self._ways.prepare(network, self._resolve, self._trust)
        plan = compile_plan(
            self.policy, self.workspace,
            authority=egress.certificate if egress is not None else "",
            variables=egress.environment if egress is not None else {},
            hosts=egress.hosts_file if egress is not None else "",
            asks=egress is not None and egress.asks,
            checks_calls=False,
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
            commands=Commands(plan),
        )  # fmt: skip

    def program(self, argv: Sequence[str]) -> str:
        """Absolute path of what `argv` starts. Raises `CommandNotFound`."""
        commands = self._entered.commands
        return commands.find(commands.command(argv, "", None))

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every sandbox, the zygote and the keeper; returns when they are gone."""
        if self._abroad is not None:
            await self._abroad.aclose()
        else:
            await uncancelled(self._end())

    async def _end(self) -> None:
        await self._commands.aclose()  # first, so that nothing is begun any more
        await self._operators.aclose()
        if self._shared is not None:
            await self._shared.running.end()
        if self._processes:
            await asyncio.wait({held.task for held in self._processes})
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
            CommandNotFound: no such executable or cwd inside, or more arguments than fit.
            SetupError: the sandbox could not be built.
            ProtectionError: what it made under a protected name could not be moved aside.

        A cancelled caller leaves nothing behind: the sandbox is killed first.
        """
        if self._abroad is not None:
            return await self._abroad.run(argv, cwd, env, stdin, wall_seconds, on_output, session)
        shared = self._entered
        order = shared.commands.order(argv, cwd, env)
        ready = await (self._prepare("pipe") if stdin else self._take(self._commands))
        try:
            if stdin:
                self._ways.open(ready.started)
                self._keep_output(ready)
                ready.write_stdin(stdin)
            if ready.started.directory and not cwd:  # it was made before there was a workspace
                order = shared.commands.order(argv, ready.started.directory, env)
            if on_output is not None:
                ready.stdout.on_output = ready.stderr.on_output = on_output
            execution = Execution(
                shared, ready.started, ready.marks, argv[0], asked_seconds=wall_seconds,
                outputs=(ready.stdout, ready.stderr),
                membership=None if session is None else Membership(session),
            )  # fmt: skip
            return await execution.carry_out(order, self._commands.refill)
        finally:
            # After the caller has gone on.
            ready.started.loop.call_soon(self._over, ready, None if stdin else self._commands)

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

    async def sandbox(
        self, *, session: Hashable = None, name: str = "sandbox", wall_seconds: float | None = None
    ) -> Sandbox:
        """Have one sandbox for several commands, which share what it has of its own.

        Args:
            session, name: As in `start`.
            wall_seconds: Killed after that; the policy's `timeout` bounds it.

        Raises:
            SetupError: as `start`, or there is no Python in its view.
        """
        from .standing import stand

        return await stand(self, session, name, wall_seconds)

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
        asked = Operation(operation, arguments, grant)
        ready = await self._take(self._operators)
        try:
            if grant is not None and grant.hosts:
                self._ways.open(ready.started, grant.hosts)
            else:
                ready.started.close_doors()  # it has no business with the network
            return await asked.carry_out(self._entered, ready, self._operators.refill)
        finally:
            ready.started.loop.call_soon(self._over, ready, self._operators)

    async def run_with(
        self,
        argv: Sequence[str],
        fds: tuple[int, int, int],
        *,
        signals: asyncio.Queue[int],
        terminal: Callable[[int], None] | None = None,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        on_end: Callable[[tuple[Connection, ...]], None] | None = None,
    ) -> Result:
        """Run `argv` on the caller's own descriptors, as `purple run` does.

        Args:
            argv: The command.
            fds: Its stdin, stdout, stderr; still the caller's to close.
            signals: Numbers put here are sent to the command's process group.
            terminal: When given, the command gets a terminal of the sandbox's own in place of each
                of `fds` that is one; called with its other side before the command starts.
            cwd, env: As in `run`.
            on_end: Called with what it connected to, also when the caller is cancelled.

        On asyncio's event loop alone, like its queue.
        """
        if self._abroad is not None:
            raise RuntimeError("run_with needs asyncio's event loop; elsewhere use start")
        from .attached import run_with

        return await run_with(
            self._entered, argv, fds, signals=signals, terminal=terminal, cwd=cwd, env=env, on_end=on_end
        )  # fmt: skip

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
        while True:
            ready = pool.take_ready() or await pool.take()
            try:
                if ready.marks == self._entered.look():
                    return ready
            except BaseException:
                self._over(ready, pool)
                raise
            self._over(ready, pool)

    async def _make_command(self) -> Ready:
        ready = await self._prepare("null")
        self._ways.open(ready.started)
        self._keep_output(ready)
        return ready

    async def _make_operator(self) -> Ready:
        ready = await self._prepare("pipe")
        have_interpreter(ready, self._entered.commands)
        return ready

    def _keep_output(self, ready: Ready) -> None:
        ready.stdout.keep_bytes = ready.stderr.keep_bytes = self.policy.resources.output_bytes

    def _over(self, ready: Ready, pool: Pool | None) -> None:
        self._discard(ready)
        if pool is not None:
            pool.done()

    def _discard(self, ready: Ready) -> None:
        ready.started.kill()
        self._ways.drop(ready.started)
        ready.close()
        self._link.gone(ready.started)
