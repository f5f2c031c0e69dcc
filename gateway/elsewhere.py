"""Servers that run elsewhere: reached by URL, under egress rules, held by no sandbox of ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..isolation import Enforcement, Engine
from ..isolation.command import Commands
from ..isolation.egress.dial import Dialer, Resolve
from ..isolation.enforcement import Layer
from ..isolation.execution import Shared
from ..isolation.guard import Guard
from ..isolation.plan import compile_plan
from ..policies import Policy, load_policy
from ..policies.addresses import literal_address
from ..policies.hosts import Hosts
from ..policies.model import HostRule, Network
from .config import ServerSpec
from .wire.http_client import Origin
from .wire.links import Connector, destination
from .wire.remote import Carrier, Remote

if TYPE_CHECKING:
    from .wire.oauth import Leave, Person

_LOOPBACK = ("127.0.0.0/8", "::1/128")
_LAYERS = ("namespaces", "mounts", "capabilities", "landlock", "seccomp", "cgroup", "network")


class Elsewhere(Engine):
    """The engine of a server that runs elsewhere: calls are judged by its policy, and nothing is held."""

    async def _build(self) -> Shared:
        layer = Layer(status="none", reason="the server runs elsewhere, not in a sandbox")
        plan = compile_plan(self.policy, None)
        return Shared(
            policy=self.policy, plan=plan, commands=Commands(plan), link=self._link,
            enforcement=Enforcement(layers=dict.fromkeys(_LAYERS, layer)),
            guard=Guard(None, (), ()), ways=self._ways,
        )  # fmt: skip

    async def __aenter__(self) -> Engine:
        self._shared = await self._build()
        return self


def leave_of(
    server: ServerSpec, policy: Policy, resolve: Resolve, person: Person | None = None
) -> Leave | None:
    """How a token for it is got, from `person` where one is there to sign in; None where none is wanted."""
    if server.auth is None:
        return None
    from .wire.oauth import Leave  # the SDK: 0.6 s

    return Leave(server.url, partial(_origin, policy, resolve), server.auth, person=person)


def connector_to(
    server: ServerSpec, policy: Policy, resolve: Resolve, leave: Leave | None = None
) -> Connector:
    """Reaches a server by its URL, as its policy's `network` lets it."""
    origin: Carrier = _origin(policy, resolve, server.url)
    if leave is not None:
        from .wire.oauth import Authorized

        origin = Authorized(_origin(policy, resolve, server.url), leave)
    return Remote(server.url, origin, server.headers, server.kind)


def _origin(policy: Policy, resolve: Resolve, url: str) -> Origin:
    hosts = Hosts(policy.network)
    return Origin(url, hosts, Dialer(hosts, resolve), policy.network.bytes_out)


def policy_for(server: ServerSpec, workspace: Path) -> Policy:
    """Of a server without a profile: what reaches the URL's host and port, and its issuer's."""
    urls = (server.url, *([server.auth.issuer] if server.auth is not None else []))
    rules: list[HostRule] = []
    for url in urls:
        host, port = destination(url)[1:]
        literal = literal_address(host)
        where = {"addresses": _LOOPBACK} if host == "localhost" else {}
        rules.append(
            HostRule(host=host if literal is None else str(literal), ports=(port,), **where)
        )
    base = load_policy("mcp-server", project=workspace)
    changes = {
        "name": f"url:{server.name}", "network": Network(isolated=False, allow=tuple(dict.fromkeys(rules))),
        "filesystem": base.filesystem.model_copy(update={"workspace": "none"}),
    }  # fmt: skip
    return base.model_copy(update=changes)
