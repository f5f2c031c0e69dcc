"""Live local servers, a local resolver, and sandboxes whose network is the policy under test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import Engine, Result
from purplebox.isolation.egress import dial, gate
from purplebox.isolation.egress.ca import Authority
from purplebox.policies import Policy, load_policy
from purplebox.policies.addresses import Address
from purplebox.policies.model import Network

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = "127.0.0.0/8"


@dataclass
class Server:
    """A listening port of the host, and what has come to it."""

    port: int
    seen: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    connections: int = 0


class Net:
    """What a test of the way out needs.

    Attributes:
        names: Where each name leads; what is not in it does not resolve.
        asked: The names that the gateway resolved, in order.
        authority: Signs the certificates of TLS servers.
    """

    def __init__(self, workspace: Path, trust: Path, authority: Authority) -> None:
        self.workspace = workspace
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.authority = authority
        self._trust = trust
        self.stack = contextlib.AsyncExitStack()

    async def resolve(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise OSError("no such name")
        return [ip_address(text) for text in self.names[name]]

    async def http(self, *, tls: str = "", host: str = "127.0.0.1") -> Server:
        """An HTTP server that answers with JSON of what it got; with `tls`, as that name."""
        context = self.authority.context(tls, "http/1.1") if tls else None
        server = Server(0)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode("latin-1").split("\r\n")
                headers = {
                    k.lower(): v for k, _, v in (text.partition(": ") for text in rest if text)
                }
                if length := int(headers.get("content-length", 0)):
                    await reader.readexactly(length)
                said = {"line": line, "headers": headers, "length": length}
                server.seen.append(said)
                body = json.dumps(said).encode()
                target = line.split()[1]
                status = b"200 OK"
                if target.startswith("/to/"):
                    status = b"302 Found\r\nLocation: " + target[4:].encode()
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)
                await writer.drain()

        return await self.serve(handle, context=context, server=server, host=host)

    async def echo(self) -> Server:
        """Sends back what it gets, and says the end only when it has got one."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

        return await self.serve(handle)

    async def serve(
        self, handle: Handler, *, context: ssl.SSLContext | None = None,
        server: Server | None = None, host: str = "127.0.0.1",
    ) -> Server:  # fmt: skip
        """A server of any protocol."""
        found = server or Server(0)

        async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.connections += 1
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()

        listening = await asyncio.start_server(on_client, host, 0, ssl=context)
        self.stack.push_async_callback(_stop, listening)
        found.port = listening.sockets[0].getsockname()[1]
        return found

    def policy(self, *allow: dict[str, Any], **network: Any) -> Policy:
        """`base` with network. A rule without `addresses` gets the loopback's."""
        rules = [{"addresses": [LOOPBACK], **rule} for rule in allow]
        for rule in rules:
            if rule["addresses"] is None or rule["host"][0].isdigit() or ":" in rule["host"]:
                del rule["addresses"]
        section = {"isolated": False, "allow": rules, **network}
        base = load_policy("base")
        return base.model_copy(update={"network": Network.model_validate(section, strict=False)})

    @contextlib.asynccontextmanager
    async def engine(self, policy: Policy) -> AsyncGenerator[Engine]:
        async with Engine(
            policy, self.workspace, resolve=self.resolve, trust=[self._trust]
        ) as engine:
            yield engine

    async def run(self, policy: Policy, command: str) -> Result:
        """A shell command in a sandbox of its own."""
        async with self.engine(policy) as engine:
            return await engine.run(["bash", "-c", command], wall_seconds=250)

    async def python(self, policy: Policy, program: str) -> Result:
        async with self.engine(policy) as engine:
            return await engine.run(["python3", "-c", program], wall_seconds=250)


async def _stop(server: asyncio.Server) -> None:
    server.close()


@pytest.fixture(scope="session")
def network_authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Path]:
    authority = Authority()
    path = tmp_path_factory.mktemp("network-ca") / "servers.pem"
    path.write_text(authority.certificate)
    return authority, path


@pytest.fixture
async def net(
    workspace: Path, network_authority: tuple[Authority, Path], anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncGenerator[Net]:  # fmt: skip
    # On a busy machine all of it takes longer.
    for name in ("_REMEMBERED_SECONDS", "RESOLVE_SECONDS", "CONNECT_SECONDS"):
        monkeypatch.setattr(dial, name, 240.0)
    monkeypatch.setattr(gate, "_LAST_SECONDS", 5.0)
    authority, path = network_authority
    (workspace / "servers.pem").write_text(authority.certificate)
    found = Net(workspace, path, authority)
    async with found.stack:
        yield found
