"""The tool servers behind a gateway: which there are now, and what each session has of them.

A reload changes both. A server whose command, environment and sandbox stay goes on, judged by the new
rules from its next call; any other is ended once its calls have, and the new one starts with the next
request. Clients are told that the lists have changed.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..isolation import CommandNotFound, Engine, View
from ..isolation.egress.dial import SystemResolver
from ..policies import Policy, PolicySource
from .call import Version
from .config import ServerSpec, after_scheme, with_secrets
from .elsewhere import Elsewhere, connector_to, leave_of, policy_for
from .gateway import Gateway
from .pins import Pins, PinStore
from .pins.launch import launch_of
from .runners import adapted
from .wire.aggregate import Many
from .wire.builtin import BuiltIns
from .wire.health import Roster
from .wire.links import Connector
from .wire.process import Launcher, sandboxed
from .wire.router import Single
from .wire.session import Session
from .wire.upstream import Upstream

if TYPE_CHECKING:
    from .wire.oauth import Leave

# Sections of a policy that say how calls are judged and recorded, not how the sandbox is built.
_JUDGING = (
    "name",
    "description",
    "extends",
    "tools",
    "approvals",
    "pins",
    "flow",
    "audit",
    "screens",
    "limits",
    "require",
)


@dataclass(frozen=True, kw_only=True)
class _Server:
    spec: ServerSpec
    own: Policy
    version: Version
    pins: Pins
    leave: Leave | None = None


class Servers:
    """The servers of one gateway.

    Args:
        gateway: Entered.
        workspace: Of servers that name none.
        roster: Told of each server of each session.
    """

    def __init__(self, gateway: Gateway, workspace: Path, roster: Roster) -> None:
        self._gateway, self._workspace, self._roster = gateway, workspace, roster
        self._resolver = SystemResolver()
        self._store = PinStore()
        self._servers: list[_Server] = []
        self._old: list[Engine] = []
        self._ending: asyncio.Task[None] | None = None
        self._sessions: weakref.WeakSet[_Behind] = weakref.WeakSet()

    async def put(
        self, specs: Sequence[ServerSpec], outer: Policy,
        steady: Callable[[PolicySource], PolicySource] = lambda source: source,
    ) -> bool:  # fmt: skip
        """Have these servers, their calls judged by `outer`, too; returns whether anything changed.

        Args:
            specs: In their order.
            outer: The gateway's policy.
            steady: Says what is read for a policy, or refuses it.

        Raises:
            PolicyError, SetupError, EnforcementError: one of them cannot be used; nothing has changed.
        """
        specs = [await asyncio.to_thread(with_secrets, spec) for spec in specs]
        policies = [self._policy(spec) for spec in specs]
        known = {server.spec.name: server for server in self._servers}
        made: list[Engine] = []
        servers: list[_Server] = []
        try:
            for spec, own in zip(specs, policies, strict=True):
                old = known.get(spec.name)
                if old is not None and old.spec == spec and held(old.own) == held(own):
                    engine = old.version.engine
                else:
                    kind = Elsewhere if spec.url else Engine
                    engine = await kind(own, spec.workspace or self._workspace).__aenter__()
                    made.append(engine)
                servers.append(self._server(spec, own, outer, engine))
        except BaseException:
            for engine in made:
                await engine.aclose()
            raise
        same = [(s.spec, s.version.policy.digest) for s in servers] == [
            (s.spec, s.version.policy.digest) for s in self._servers
        ]
        if same and not made:
            return False
        kept = {id(server.version.engine) for server in servers}
        gone = [s.version.engine for s in self._servers if id(s.version.engine) not in kept]
        self._servers = servers
        self._old += gone
        endings = [e for session in list(self._sessions) for e in session.adopt(servers)]
        if gone:
            self._ending = asyncio.create_task(self._end(gone, endings))
        return True

    def digests(self) -> set[str]:
        """Versions of the policies that calls of these servers are judged by."""
        return {server.version.policy.digest for server in self._servers}

    def views(self) -> list[View]:
        """What the servers' sandboxes see."""
        return [server.version.engine.view for server in self._servers]

    def sources(self) -> list[PolicySource]:
        """Where the servers' own policies come from."""
        names = dict.fromkeys(s.spec.profile for s in self._servers if s.spec.profile)
        return [PolicySource(name=name, project=self._workspace) for name in names]

    def behind(self, session: Session) -> Many:
        """What a new session is served from."""
        made = _Behind(self._gateway, session, self.start)
        self._sessions.add(made)
        made.adopt(self._servers)
        return made

    def alone(self, session: Session) -> Single:
        """What a new session of the only server is served from: its own names and identity."""
        (server,) = self._servers
        return Single(self.start(server, session))

    def start(self, server: _Server, session: Session) -> Upstream:
        """A session's own connection to a server, made when it is first needed."""
        spec, version = server.spec, server.version
        connector: Connector
        if spec.url:
            connector = connector_to(spec, server.own, self._resolver, server.leave)
        else:
            argv, env = adapted(spec.argv, spec.env)
            life = self._gateway.life_of(spec.name, version, argv)
            connector = Launcher(spec.name, sandboxed(version.engine, argv, env, life))
        upstream = Upstream(
            spec.name, connector, session, self._gateway.calls, version, pins=server.pins
        )
        self._roster.add(upstream)
        return upstream

    async def aclose(self) -> None:
        """End every engine; the sessions have ended."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        for engine in [*self._old, *(server.version.engine for server in self._servers)]:
            await engine.aclose()
        self._old, self._servers = [], []
        self._resolver.close()

    def _policy(self, spec: ServerSpec) -> Policy:
        if spec.url and not spec.profile:
            return policy_for(spec, self._workspace)
        return PolicySource(name=spec.profile, project=self._workspace).load()

    def _server(self, spec: ServerSpec, own: Policy, outer: Policy, engine: Engine) -> _Server:
        sent = {name: after_scheme(text) for name, text in spec.headers.items()}
        if spec.auth is not None and spec.auth.client_secret:
            sent["client_secret"] = spec.auth.client_secret
        secrets = {**spec.env, **sent}
        version = Version(
            policy=both(outer, own), engine=engine, secrets=secrets, read=spec.secrets
        )
        workspace = spec.workspace or self._workspace
        key = f"{spec.origin}#{spec.name}"
        pins = pins_of(key, spec.name, self._store, version, spec.argv, workspace)
        leave = leave_of(spec, own, self._resolver) if spec.url else None
        return _Server(spec=spec, own=own, version=version, pins=pins, leave=leave)

    async def _end(self, engines: list[Engine], endings: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*endings, return_exceptions=True)
        for engine in engines:
            if engine in self._old:
                self._old.remove(engine)
                await engine.aclose()


class _Behind(Many):
    """One session's servers."""

    def __init__(
        self, gateway: Gateway, session: Session, start: Callable[[_Server, Session], Upstream]
    ) -> None:
        self._tools = BuiltIns(gateway)
        super().__init__([self._tools])
        self._session, self._start = session, start
        self._upstreams: dict[str, Upstream] = {}

    def adopt(self, servers: Sequence[_Server]) -> list[asyncio.Task[None]]:
        """Have these; returns what ends those that are not there any more."""
        now: dict[str, Upstream] = {}
        for server in servers:
            name, version = server.spec.name, server.version
            old = self._upstreams.get(name)
            if old is not None and old.version.engine is version.engine:
                old.version = version
                now[name] = old
            else:
                now[name] = self._start(server, self._session)
        gone = [u for u in self._upstreams.values() if u not in now.values()]
        changed = self._upstreams != now and self._session.client is not None
        self._upstreams = now
        self.replace([self._tools, *now.values()])
        if changed:
            self.tell(self._session)
        return [asyncio.create_task(upstream.retire()) for upstream in gone]


def held(policy: Policy) -> dict[str, Any]:
    """What a sandbox is built from."""
    return policy.model_dump(mode="json", exclude=set(_JUDGING))


def pins_of(
    key: str, name: str, store: PinStore, version: Version, argv: Sequence[str], workspace: Path
) -> Pins:
    """The pins of a server that `argv` starts in the version's sandbox; () for one elsewhere."""

    def launch() -> dict[str, Any] | None:
        if not argv:
            return None
        try:
            program = version.engine.program(argv)
        except CommandNotFound:  # said when it is started
            return None
        return launch_of(argv, program, workspace.absolute())

    return Pins(key=key, name=name, settings=version.policy.pins, store=store, launch=launch)


def both(outer: Policy, own: Policy) -> Policy:
    """A server's policy whose calls the gateway's rules judge and limits hold, too; the stricter
    default holds."""
    limits = tuple(dict.fromkeys((*outer.limits, *own.limits)))
    own = own.model_copy(update={"limits": limits})
    if (outer.tools, outer.flow, outer.approvals) == (own.tools, own.flow, own.approvals):
        return own
    order = ("deny", "ask", "allow")
    default = min(outer.tools.default, own.tools.default, key=order.index)
    rules = (*outer.tools.rules, *own.tools.rules)
    both = {
        "default": default, "rules": rules,
        "arguments": {**outer.tools.arguments, **own.tools.arguments},
        "approved": (*outer.tools.approved, *own.tools.approved),
    }  # fmt: skip
    tools = own.tools.model_copy(update=both)
    changes = {
        "name": f"{outer.name}+{own.name}", "tools": tools, "flow": (*outer.flow, *own.flow),
        "approvals": outer.approvals,
    }  # fmt: skip
    return own.model_copy(update=changes)
