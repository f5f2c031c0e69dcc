"""One object for all: a policy over a workspace, its tools, decided, sandboxed and recorded.

The MCP server, the adapters for agent frameworks and Python programs use the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jsonschema

from ..isolation import Engine
from ..isolation.cancellation import uncancelled
from ..policies import Policy, PolicySource
from .approvals import Approvals, Asker, Callback, Question
from .audit import AuditLog, default_path, spans
from .call import Call, Outcome, Progress, Refusal, Version
from .calls import Approver, Calls, Stage
from .limits import Limits
from .lives import Begin, life_of
from .processes import Processes
from .reasons import Reason
from .screens import Screens
from .tools import TOOLS, BuiltIn, ToolDefinition
from .tools.processes import PROCESSES

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


class Gateway:
    """The built-in tools under one policy. Use as an async context manager.

    Args:
        policy: A `Policy`, where it comes from, or the name or path of a profile.
        workspace: The directory that the tools see.
        audit_log: File of the record; None is the user's own (`purple audit`).
        stages: Around every call; see `calls.Stage`.
        approver: Asked where a rule says `ask`: an `Approver`, or a function (also a coroutine) from
            the `Question` to `True`, `False` or a `Choice`; None: such calls are refused.

    Raises:
        PolicyError: from the constructor, the profile cannot be used.
        SetupError: on entering, the sandbox cannot be built; says what to do.
        EnforcementError: on entering, the host enforces less than the policy requires.
        OSError: on entering, the record cannot be written.
    """

    def __init__(
        self, policy: Policy | PolicySource | str = "code-assistant", workspace: Path | str = ".", *,
        audit_log: Path | str | None = None, stages: Sequence[Stage] = (),
        approver: Approver | Callable[[Question], Any] | None = None,
    ) -> None:  # fmt: skip
        self.workspace = Path(workspace)
        if isinstance(policy, str):
            policy = PolicySource(name=policy, project=self.workspace)
        source = policy if isinstance(policy, PolicySource) else None
        self._policy = policy.load() if isinstance(policy, PolicySource) else policy
        self._path = Path(audit_log) if audit_log is not None else default_path()
        self._stages = tuple(stages)
        if approver is not None and not isinstance(approver, Approver):
            approver = Approvals([Callback(approver)], source=source)
        self._approver: Approver | None = approver
        self._version: Version | None = None
        self._calls: Calls | None = None
        self._log: AuditLog | None = None
        self._processes: Processes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_flight: dict[int, int] = {}  # calls by `id` of their engine
        self._old: list[Engine] = []

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._version.policy if self._version is not None else self._policy

    @property
    def version(self) -> Version:
        """Policy and engine in force. Raises `RuntimeError` before entering."""
        if self._version is None:
            raise RuntimeError("the gateway has not been entered; use `async with`")
        return self._version

    @property
    def calls(self) -> Calls:
        """The path of every call. Raises `RuntimeError` before entering."""
        if self._calls is None:
            raise RuntimeError("the gateway has not been entered; use `async with`")
        return self._calls

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on. Raises `RuntimeError` before entering."""
        if self._loop is None:
            raise RuntimeError("the gateway has not been entered; use `async with`")
        return self._loop

    async def __aenter__(self) -> Gateway:
        self._loop = asyncio.get_running_loop()
        log = AuditLog(self._path)
        try:
            engine = await Engine(self._policy, self.workspace).__aenter__()
        except BaseException:
            log.close()
            raise
        self._log, self._version = log, Version(policy=self._policy, engine=engine)
        self._processes = Processes(log)
        self._calls = Calls(
            log, stages=(Screens(), Limits(), *self._stages), approver=self._approver
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every sandbox and close the record; returns when they are gone."""
        await uncancelled(self._end())

    async def end_session(self, session: str) -> None:
        """End what a session has in the background. Names of sessions are their clients' own."""
        if self._processes is not None and session:
            await self._processes.end_session(session)

    def background(self) -> list[dict[str, Any]]:
        """What runs in the background, of all sessions, as `purple ps` shows it."""
        return self._processes.status() if self._processes is not None else []

    def life_of(self, name: str, version: Version, argv: Sequence[str]) -> Begin | None:
        """What records the lives of a server, see `lives.life_of`. Raises `RuntimeError` before entering."""
        if self._log is None:
            raise RuntimeError("the gateway has not been entered; use `async with`")
        return life_of(self._log, name, version, argv)

    async def _end(self) -> None:
        processes, self._processes = self._processes, None
        if processes is not None:
            await processes.aclose()
        version, self._version, self._calls = self._version, None, None
        for engine in self._old:
            await engine.aclose()
        self._old.clear()
        if version is not None:
            await version.engine.aclose()
        if self._log is not None:
            self._log.close()
            self._log = None

    async def replace(self, policy: Policy) -> None:
        """Put another policy in force. Calls in flight end under the one that they began under.

        Raises:
            SetupError, EnforcementError: it cannot be used here; the old one stays in force.
        """
        old = self.version
        if policy.digest == old.policy.digest:
            return
        engine = await Engine(policy, self.workspace).__aenter__()
        self._version = Version(policy=policy, engine=engine)
        if isinstance(self._approver, Approvals):
            self._approver.policies_in_force({policy.digest})
        self._old.append(old.engine)
        if self._processes is not None:
            await self._processes.end_version(old)
        await self._retire(old.engine)

    async def _retire(self, engine: Engine) -> None:
        """End an engine that is not in force once its last call has ended."""
        if engine in self._old and not self._in_flight.get(id(engine)):
            self._old.remove(engine)
            await engine.aclose()

    def note(self, reason: Reason, policy: Policy, text: str) -> None:
        """Leave a record of a reload: the policy that is in force after it, and what happened."""
        if self._log is None:
            return
        call_id = self._log.begin({
            "tool": "reload", "client": "gateway", "policy": policy.name,
            "policy_version": policy.digest, "effect": "allow" if reason is Reason.COMPLETED else "deny",
            "rule": "reload", "decision_reason": text, "arguments": {},
        })  # fmt: skip
        self._log.end(call_id, {"reason": str(reason)})
        spans.reloaded(str(reason), policy.name, policy.digest, text)

    def tools(self) -> list[ToolDefinition]:
        """The built-in tools, in the order in which they are listed; `http_request` where the policy
        has a network, those of processes where it has some in the background."""
        left_out = {"http_request"} if self.policy.network.isolated else set[str]()
        if not self.policy.resources.background:
            left_out |= {tool.definition.name for tool in PROCESSES}
        return [tool.definition for name, tool in TOOLS.items() if name not in left_out]

    async def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, client: str = "",
        session: str = "", progress: Progress | None = None, asker: Asker | None = None,
    ) -> Outcome:  # fmt: skip
        """Call a built-in tool; a refusal or failure is an `Outcome`, too.

        Args:
            tool: Its name.
            arguments: By its input schema.
            client, session: Who asks, for rules and the record.
            progress: Called with running output as it comes.
            asker: Reaches the person at that client, where a rule says `ask`.

        Raises:
            OSError: the record cannot be written; nothing has run.
        """
        call = Call(
            tool=tool, arguments=arguments or {}, client=client, session=session,
            progress=progress, asker=asker, processes=self._processes,
        )  # fmt: skip
        built_in = TOOLS.get(tool)
        problem = _problem(tool, call.arguments, built_in)
        run = (built_in or TOOLS["shell"]).run  # with a problem nothing runs
        version = self.version
        key = id(version.engine)
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        try:
            return await self.calls.call(call, version, run, problem=problem)
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
                if version.engine in self._old:
                    await asyncio.shield(self._retire(version.engine))

    def sync(self) -> SyncGateway:
        """The same for programs without an event loop: `with Gateway(…).sync() as gateway:`."""
        return SyncGateway(self)


def _problem(tool: str, arguments: Mapping[str, Any], built_in: BuiltIn | None) -> Refusal | None:
    """What is wrong with the call itself; None when nothing is."""
    if built_in is None:
        text = f"There is no tool {tool!r}; there are: {', '.join(TOOLS)}."
        return Refusal(reason=Reason.UNKNOWN_TOOL, rule="tools", text=text)
    error = next(iter(built_in.validator.iter_errors(dict(arguments))), None)
    if error is None:
        return None
    assert isinstance(error, jsonschema.ValidationError)
    where = ".".join(str(part) for part in error.absolute_path)
    text = f"Invalid arguments for {tool}: {where + ': ' if where else ''}{error.message[:500]}"
    return Refusal(reason=Reason.INVALID_ARGUMENTS, rule="schema", text=text)


class SyncGateway:
    """A `Gateway` on an event loop in a thread of its own. Use as a context manager.

    Calls may come from several threads at once.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._portals: AbstractContextManager[BlockingPortal] | None = None
        self._entered: AbstractContextManager[Gateway] | None = None
        self._portal: BlockingPortal | None = None

    @property
    def gateway(self) -> Gateway:
        """The one on the other thread."""
        return self._gateway

    def __enter__(self) -> SyncGateway:
        from anyio.from_thread import start_blocking_portal

        self._portals = start_blocking_portal("asyncio")
        self._portal = self._portals.__enter__()
        held: AbstractAsyncContextManager[Gateway] = self._gateway
        self._entered = self._portal.wrap_async_context_manager(held)
        try:
            self._entered.__enter__()
        except BaseException:
            self._portals.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._entered is not None
        assert self._portals is not None
        try:
            self._entered.__exit__(kind, error, trace)
        finally:
            self._portals.__exit__(kind, error, trace)
            self._portal = None

    def tools(self) -> list[ToolDefinition]:
        """As `Gateway.tools`."""
        return self._gateway.tools()

    def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, client: str = "",
        session: str = "", progress: Progress | None = None,
    ) -> Outcome:  # fmt: skip
        """As `Gateway.call`; `progress` is called on the gateway's thread."""
        if self._portal is None:
            raise RuntimeError("the gateway has not been entered; use `with`")
        gateway = self._gateway
        work: Callable[[], Any] = lambda: gateway.call(  # noqa: E731
            tool, arguments, client=client, session=session, progress=progress
        )
        outcome: Outcome = self._portal.call(work)
        return outcome
