"""An interceptor alone, on a port of its own, before live servers that say what they got."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation.egress.ca import Authority
from purplebox.isolation.egress.credentials import Vault
from purplebox.isolation.egress.http import Exchange, Judgement, Origin
from purplebox.isolation.egress.inspect import Interceptor
from purplebox.isolation.egress.tls import SocketStream

HOST = "api.test"


class Handler(http.server.BaseHTTPRequestHandler):
    """Says what it got."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/repos/ws":
            self.websocket()
            return
        if self.path == "/repos/early":
            self.close_connection = True
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        elif length := int(self.headers.get("Content-Length") or 0):
            while len(body) < length and (
                data := self.rfile.read(min(1 << 20, length - len(body)))
            ):
                body += data
        if len(body) < int(self.headers.get("Content-Length") or 0):
            self.close_connection = True  # cut: no request
            return
        seen = {
            "method": self.command, "path": self.path, "headers": dict(self.headers.items()),
            "length": len(body), "sha256": hashlib.sha256(body).hexdigest(),
        }  # fmt: skip
        self.server.seen.append(seen)  # type: ignore[attr-defined]
        said = json.dumps(seen).encode()
        if self.path.startswith("/repos/large"):
            said = b"x" * (64 << 20)
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.send_header("X-Echo", self.headers.get("Authorization") or "")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(said)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def websocket(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        while data := self.connection.recv(4096):
            self.connection.sendall(data)
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[dict[str, Any]] = []
        self.context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            if self.context is None:
                super().finish_request(request, client_address)
                return
            with self.context.wrap_socket(request, server_side=True) as tls:
                super().finish_request(tls, client_address)


@pytest.fixture(scope="module")
def servers_authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Path]:
    """The servers' own, which the gate's configuration trusts and no sandbox knows."""
    authority = Authority()
    path = tmp_path_factory.mktemp("ca") / "servers.pem"
    path.write_text(authority.certificate)
    return authority, path


@pytest.fixture
def server(servers_authority: tuple[Authority, Path]) -> Generator[Server]:
    yield from _served(servers_authority[0].context(HOST, "http/1.1"))


@pytest.fixture
def plain_server() -> Generator[Server]:
    yield from _served(None)


def _served(context: ssl.SSLContext | None) -> Generator[Server]:
    found = Server(context)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        found.server_close()
        thread.join()


def decide(origin: Origin, method: str, path: str) -> Judgement:
    allowed = origin.host == HOST and method in ("GET", "HEAD", "PUT") and path.startswith("/repos")
    return Judgement(allowed=allowed, rule="network.allow[0]")


class Gate:
    """A listening socket behind which an Interceptor stands."""

    def __init__(self, interceptor: Interceptor, target: int, bundle: Path, host: str) -> None:
        self._interceptor = interceptor
        self._target = target
        self._host = host
        self.bundle = bundle
        self.opaque = False
        self.exchanges: list[Exchange] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[Gate]:
        server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        await self._interceptor.serve(
            SocketStream(reader, writer), self._host, self.port, dial=self._dial, decide=decide,
            on_exchange=self.exchanges.append, opaque=self.opaque,
        )  # fmt: skip

    async def _dial(self) -> SocketStream:
        return SocketStream(*await asyncio.open_connection("127.0.0.1", self._target))

    async def curl(
        self, *arguments: str, path: str = "/repos/a", scheme: str = "https"
    ) -> tuple[int, str]:
        """Status and body."""
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--noproxy", "*", "--resolve", f"{self._host}:{self.port}:127.0.0.1",
            "--cacert", str(self.bundle), "-w", "\n%{http_code} %{http_version}", "--max-time", "20",
            "--path-as-is", *arguments, f"{scheme}://{self._host}:{self.port}{path}",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        body, _, status = out.decode().rpartition("\n")
        self.version = status.split()[1]
        return int(status.split()[0]), body

    async def raw(self, data: bytes, *, name: str | None = None) -> bytes:
        """What comes back for `data`, sent inside TLS, until the end."""
        return await asyncio.to_thread(self._raw, data, name or self._host)

    def _raw(self, data: bytes, name: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.bundle))
        context.check_hostname = name == self._host
        found = b""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=120) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            tls.sendall(data)
            while chunk := tls.recv(65536):
                found += chunk
        return found

    def request(self, line: str = "GET /repos/a", *headers: str, body: str = "") -> bytes:
        head = [
            f"{line} HTTP/1.1",
            f"Host: {self._host}:{self.port}",
            "Connection: close",
            *headers,
        ]
        return ("\r\n".join(head) + "\r\n\r\n" + body).encode("latin-1")


GateTo = Callable[..., contextlib.AbstractAsyncContextManager[Gate]]


@pytest.fixture
def gate_to(servers_authority: tuple[Authority, Path], tmp_path: Path) -> GateTo:
    """Opens a gate to a port, with credentials or none."""

    @contextlib.asynccontextmanager
    async def opened(target: int, vault: Vault | None = None) -> AsyncGenerator[Gate]:
        authority = Authority()
        bundle = tmp_path / "bundle.pem"
        bundle.write_text(authority.certificate)
        interceptor = Interceptor(authority, vault or Vault(()), [servers_authority[1]])
        async with Gate(interceptor, target, bundle, HOST).open() as gate:
            yield gate

    return opened


@pytest.fixture
async def gate(server: Server, gate_to: GateTo) -> AsyncGenerator[Gate]:
    async with gate_to(server.server_port) as found:
        yield found
