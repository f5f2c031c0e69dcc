"""`tls: inspect` against live servers, with clients that know nothing of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from purplebox.isolation.egress.ca import Authority
from purplebox.isolation.egress.credentials import Vault, open_vault
from purplebox.isolation.egress.http import Exchange, Judgement, Origin
from purplebox.isolation.egress.inspect import Interceptor
from purplebox.isolation.egress.tls import SocketStream
from purplebox.policies.hosts import Why
from purplebox.policies.model import Credential

pytestmark = pytest.mark.anyio
HOST = "api.test"
SECRET = "the-real-token-of-the-person"


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
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock,
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


@contextlib.asynccontextmanager
async def gate_to(
    target: int, trust: Path, tmp_path: Path, vault: Vault | None = None, host: str = HOST
) -> AsyncGenerator[Gate]:
    authority = Authority()
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(authority.certificate)
    interceptor = Interceptor(authority, vault or Vault(()), [trust])
    async with Gate(interceptor, target, bundle, host).open() as gate:
        yield gate


@pytest.fixture
async def gate(
    server: Server, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> AsyncGenerator[Gate]:
    async with gate_to(server.server_port, servers_authority[1], tmp_path) as found:
        yield found


async def test_allowed_request_passes_and_denied_ones_get_403_with_the_rule(
    gate: Gate, server: Server
) -> None:
    assert (await gate.curl())[0] == 200
    for arguments, path in ((("-X", "DELETE"), "/repos/a"), ((), "/admin"), ((), "/repos/../admin"),
                            ((), "/repos/%2e%2e/admin"), ((), "/repos/..;/admin")):  # fmt: skip
        status, body = await gate.curl(*arguments, path=path)
        assert status == 403 and "network.allow[0]" in body and "ask the person" in body
    status, body = await gate.curl("-H", "Accept: application/json", path="/admin")
    assert json.loads(body)["purple"]["error"] == Why.REQUEST_NOT_ALLOWED
    status, _ = await gate.curl("-H", "X-HTTP-Method-Override: DELETE")
    assert status == 403
    assert [s["path"] for s in server.seen] == ["/repos/a"]
    assert [e.reason for e in gate.exchanges] == ["", *[Why.REQUEST_NOT_ALLOWED] * 7]


async def test_every_request_of_a_kept_connection_is_judged(gate: Gate, server: Server) -> None:
    first = gate.request().replace(b"Connection: close\r\n", b"")
    found = await gate.raw(first + gate.request("GET /admin"))
    assert found.count(b"HTTP/1.1 200") == 1 and found.count(b"HTTP/1.1 403") == 1
    assert len(server.seen) == 1


async def test_host_must_be_the_name_that_was_asked_for(gate: Gate, server: Server) -> None:
    assert (await gate.curl("-H", f"Host: {HOST.upper()}."))[0] == 200
    for name in ("other.test", "127.0.0.1", f"{HOST}:1", f"user@{HOST}"):
        assert (await gate.curl("-H", f"Host: {name}"))[0] in (400, 421)
    absolute = (
        f"GET http://other.test/repos/a HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    )
    assert b" 421 " in (await gate.raw(absolute.encode())).splitlines()[0]
    assert len(server.seen) == 1


async def test_another_sni_is_refused_in_the_handshake(gate: Gate, server: Server) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        await gate.raw(gate.request(), name="other.test")
    assert [e.reason for e in gate.exchanges] == [Why.NAME_MISMATCH] and not server.seen


SMUGGLED = {
    "both lengths": (
        "PUT /repos/a",
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        "0\r\n\r\n",
    ),
    "two lengths": ("PUT /repos/a", ("Content-Length: 4", "Content-Length: 4"), "abcd"),
    "other coding": ("PUT /repos/a", ("Transfer-Encoding: xchunked",), "0\r\n\r\n"),
    "hidden coding": ("PUT /repos/a", ("Transfer-Encoding:\x0bchunked",), "0\r\n\r\n"),
    "space before colon": ("PUT /repos/a", ("Content-Length : 4",), "abcd"),
    "folded header": ("GET /repos/a", ("X-A: b\r\n c",), ""),
    "bare line feed": ("GET /repos/a", ("X-A: b\nX-B: c",), ""),
    "bare carriage return": ("GET /repos/a", ("X-A: b\rX-B: c",), ""),
    "NUL": ("GET /repos/a", ("X-A: b\0",), ""),
    "second host": ("GET /repos/a", ("Host: other.test",), ""),
    "escaped line break": ("GET /repos/a%0d%0aX:%20y", (), ""),
    "trace": ("TRACE /repos/a", (), ""),
    "connect": ("CONNECT other.test:443", (), ""),
}


@pytest.mark.parametrize("case", SMUGGLED)
async def test_smuggling_is_refused(case: str, gate: Gate, server: Server) -> None:
    line, headers, body = SMUGGLED[case]
    status = int((await gate.raw(gate.request(line, *headers, body=body))).split()[1])
    assert status in (400, 405, 421, 501) and not server.seen
    control = gate.request("PUT /repos/a", "Content-Length: 4", body="abcd")
    assert b" 200 " in (await gate.raw(control)).splitlines()[0]
    assert server.seen[0]["length"] == 4


async def test_bodies_are_framed_anew(gate: Gate, server: Server, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 20000)
    for arguments in (("-T", str(data)), ("-T", str(data), "-H", "Transfer-Encoding: chunked"),
                      ("-X", "GET", "--data-binary", f"@{data}")):  # fmt: skip
        status, body = await gate.curl(*arguments)
        assert status == 200
        assert json.loads(body)["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    trailers = "4\r\nabcd\r\n0\r\nX-T: v\r\n\r\n"
    found = await gate.raw(
        gate.request("PUT /repos/a", "Transfer-Encoding: chunked", body=trailers)
    )
    assert b" 200 " in found.splitlines()[0] and server.seen[-1]["length"] == 4
    assert (await gate.curl("-I"))[0] == 200
    assert len((await gate.curl(path="/repos/large"))[1]) == 64 << 20


async def test_certificate_of_the_server_that_nobody_trusts_stays_an_error(
    gate: Gate, server: Server
) -> None:
    server.context = Authority().context(HOST, "http/1.1")
    status, body = await gate.curl()
    assert status == 502 and "certificate" in body and not server.seen
    assert gate.exchanges[-1].reason == Why.UPSTREAM_FAILED


def any_name(_: ssl.SSLObject, __: str | None, ___: ssl.SSLContext) -> None:
    """An SNI callback."""


async def test_certificate_for_another_name_stays_an_error(
    gate: Gate, server: Server, servers_authority: tuple[Authority, Path]
) -> None:
    context = servers_authority[0].context("other.test", "http/1.1")
    context.sni_callback = any_name
    server.context = context
    status, body = await gate.curl()
    assert status == 502 and "certificate" in body and not server.seen


async def test_program_that_does_not_trust_the_sandbox_authority_is_told_where_to_look(
    gate: Gate, servers_authority: tuple[Authority, Path]
) -> None:
    gate.bundle = servers_authority[1]
    with pytest.raises(ssl.SSLError):
        await gate.raw(gate.request())
    while not gate.exchanges:
        await asyncio.sleep(0)
    assert gate.exchanges[0].reason == Why.CLIENT_TLS
    assert "SSL_CERT_FILE" in gate.exchanges[0].text


async def test_websocket_passes_after_its_request_was_allowed(gate: Gate) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: eHg=", "Sec-WebSocket-Version: 13")

    def talk(path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(gate.bundle))
        with (
            socket.create_connection(("127.0.0.1", gate.port), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=HOST) as tls,
        ):
            head = gate.request(f"GET {path}", *upgrade).replace(
                b"Connection: close", b"Connection: Upgrade"
            )
            tls.sendall(head)
            found = tls.recv(65536)
            if b" 101 " in found:
                tls.sendall(b"ping")
                found += tls.recv(4)
            return found

    found = await asyncio.to_thread(talk, "/repos/ws")
    assert found.startswith(b"HTTP/1.1 101") and found.endswith(b"ping")
    assert b" 403 " in (await asyncio.to_thread(talk, "/ws")).splitlines()[0]


async def test_plain_http_is_judged_too(plain_server: Server, tmp_path: Path,
                                        servers_authority: tuple[Authority, Path]) -> None:  # fmt: skip
    async with gate_to(plain_server.server_port, servers_authority[1], tmp_path) as gate:
        assert (await gate.curl(scheme="http"))[0] == 200
        assert (await gate.curl(scheme="http", path="/admin"))[0] == 403
        # h2c would be a way past: its upgrade is not passed on.
        assert (await gate.curl("--http2", scheme="http"))[0] == 200
        assert "Upgrade" not in plain_server.seen[-1]["headers"]


async def test_other_protocols_pass_only_where_no_look_is_asked_for(
    tmp_path: Path, servers_authority: tuple[Authority, Path]
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[1]
    async with gate_to(target, servers_authority[1], tmp_path) as gate:
        gate.opaque = True
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        assert await reader.readline() == b"220 hello\r\n"
        writer.write(b"ehlo\r\n")
        assert await reader.read() == b"ehlo\r\n"
        writer.close()
        gate.opaque = False
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(b"\x00\x01ehlo\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert gate.exchanges[-1].reason == Why.PROTOCOL_NOT_ALLOWED
    server.close()


def one_credential(host: str = HOST) -> Vault:
    entry = Credential(
        host=host, header="Authorization", value="Bearer ${secret:T}", placeholder_env="TOKEN"
    )
    return open_vault([entry], "inspect", {"T": SECRET})


async def test_credential_is_put_in_and_covered_in_the_answer(
    server: Server, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> None:
    vault = one_credential()
    placeholder = vault.environment["TOKEN"]
    async with gate_to(server.server_port, servers_authority[1], tmp_path, vault) as gate:
        for arguments in (
            (),
            ("-H", f"Authorization: token {placeholder}"),
            ("-u", f"me:{placeholder}"),
        ):
            status, body = await gate.curl("-i", *arguments)
            assert status == 200 and SECRET not in body
        sent = [s["headers"]["Authorization"] for s in server.seen]
        basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
        assert sent == [f"Bearer {SECRET}", f"token {SECRET}", f"Basic {basic}"]
        assert all(e.credentials == ("TOKEN",) for e in gate.exchanges)
        upload = tmp_path / "body"
        upload.write_text("x" * 300_000 + placeholder)
        status, body = await gate.curl("-T", str(upload))
        assert status == 403 and Why.CREDENTIAL_MISUSED in body
        assert (await gate.curl(path=f"/repos/{placeholder}"))[0] == 403
        assert (await gate.curl("-H", f"X-Other: {placeholder}"))[0] == 403
        assert len(server.seen) == 3 and SECRET not in repr(gate.exchanges)


async def test_placeholder_for_one_host_sent_to_another_is_refused(
    server: Server, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> None:
    vault = one_credential("elsewhere.test")
    placeholder = vault.environment["TOKEN"]
    async with gate_to(server.server_port, servers_authority[1], tmp_path, vault) as gate:
        for arguments in (
            ("-H", f"Authorization: Bearer {placeholder}"),
            ("-u", f"me:{placeholder}"),
        ):
            status, body = await gate.curl(*arguments)
            assert status == 403 and "TOKEN" in body
        assert (await gate.curl("-u", "me:mine"))[0] == 200
        assert "Authorization" in server.seen[0]["headers"] and len(server.seen) == 1


async def test_git_clones_over_https(
    servers_authority: tuple[Authority, Path], tmp_path: Path
) -> None:
    source, root = tmp_path / "source", tmp_path / "www"
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(source)]
    source.mkdir()
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    bare = root / "repos" / "a.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)

    class Files(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, format: str, *args: object) -> None:
            pass

    for server in _served(servers_authority[0].context(HOST, "http/1.1")):
        server.RequestHandlerClass = Files
        async with gate_to(server.server_port, servers_authority[1], tmp_path) as gate:
            for path, status in (("/repos/a.git", 0), ("/other/a.git", 128)):
                process = await asyncio.create_subprocess_exec(
                    "git", "-c", f"http.curloptResolve={HOST}:{gate.port}:127.0.0.1",
                    "-c", f"http.sslCAInfo={gate.bundle}", "clone", "-q",
                    f"https://{HOST}:{gate.port}{path}", str(tmp_path / f"clone{status}"),
                    stderr=subprocess.PIPE, env={"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0"},
                )  # fmt: skip
                _, err = await process.communicate()
                assert process.returncode == status, err
            assert b"403" in err


class Http2Server:
    """Echoes bodies and adds a trailer; h2 alone, none of the gate's code."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        bodies: dict[int, bytearray] = {}
        answers: dict[int, bytes] = {}

        def push() -> None:
            for number, body in list(answers.items()):
                room = min(
                    connection.local_flow_control_window(number), connection.max_outbound_frame_size
                )
                while body and room > 0:
                    connection.send_data(number, body[:room])
                    body = body[room:]
                    room = min(
                        connection.local_flow_control_window(number),
                        connection.max_outbound_frame_size,
                    )
                answers[number] = body
                if not body:
                    del answers[number]
                    connection.send_headers(number, [("grpc-status", "0")], end_stream=True)

        with contextlib.suppress(OSError):
            writer.write(connection.data_to_send())
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    number: int = getattr(event, "stream_id", 0) or 0
                    if isinstance(event, h2.events.RequestReceived):
                        self.paths.append(dict(event.headers or ())[b":path"].decode())
                        bodies[number] = bytearray()
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[number] += event.data or b""
                        connection.acknowledge_received_data(
                            event.flow_controlled_length or 0, number
                        )
                    elif isinstance(event, h2.events.StreamEnded):
                        connection.send_headers(number, [(":status", "200"), ("x-a", "b")])
                        answers[number] = bytes(bodies.pop(number)) or b"hello"
                push()
                writer.write(connection.data_to_send())
                await writer.drain()
        writer.close()


@pytest.fixture
async def http2(
    servers_authority: tuple[Authority, Path], tmp_path: Path
) -> AsyncGenerator[tuple[Gate, Http2Server]]:
    behind = Http2Server()
    context = servers_authority[0].context(HOST, "h2")
    server = await asyncio.start_server(behind.serve, "127.0.0.1", 0, ssl=context)
    async with gate_to(server.sockets[0].getsockname()[1], servers_authority[1], tmp_path) as gate:
        yield gate, behind
    server.close()


async def test_http2_requests_are_judged_one_by_one(http2: tuple[Gate, Http2Server]) -> None:
    gate, server = http2
    status, body = await gate.curl()
    assert (status, body, gate.version) == (200, "hello", "2")
    for arguments, path in (
        (("-X", "DELETE"), "/repos/a"),
        ((), "/admin"),
        ((), "/repos/%2e%2e/admin"),
    ):
        status, body = await gate.curl(*arguments, path=path)
        assert (status, gate.version) == (403, "2") and "network.allow[0]" in body
    assert (await gate.curl("-H", "Host: other.test"))[0] == 421
    assert server.paths == ["/repos/a"]
    status, body = await gate.curl("-X", "DELETE", "-H", "Content-Type: application/grpc", "-i")
    assert "grpc-status: 7" in body


async def test_http2_carries_large_bodies_both_ways(
    http2: tuple[Gate, Http2Server], tmp_path: Path
) -> None:
    gate, _ = http2
    data = tmp_path / "data"
    data.write_text("0123456789abcdef" * 300_000)
    status, body = await gate.curl("-T", str(data))
    assert status == 200 and body == data.read_text()
    assert gate.exchanges[-1].bytes_out == gate.exchanges[-1].bytes_in == len(body)


async def test_http2_trailers_pass_and_streams_share_a_connection(
    http2: tuple[Gate, Http2Server],
) -> None:
    gate, server = http2
    url = f"https://{HOST}:{gate.port}/repos/"
    status, body = await gate.curl("-i", "-Z", *[f"{url}{i}" for i in range(5)])
    assert status == 200 and body.count("grpc-status: 0") == 6 and len(server.paths) == 6


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_node_trusts_the_sandbox_authority(gate: Gate) -> None:
    script = (
        "const [port, host, path] = process.argv.slice(1); require('https').get({host: '127.0.0.1', "
        "port, path, servername: host, headers: {host}}, r => { console.log(r.statusCode); process.exit(0) })"
    )
    for path, status in (("/repos/a", b"200"), ("/admin", b"403")):
        process = await asyncio.create_subprocess_exec(
            "node", "-e", script, str(gate.port), HOST, path, stdout=subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_EXTRA_CA_CERTS": str(gate.bundle)},
        )  # fmt: skip
        assert (await process.communicate())[0].strip() == status


def test_authority_keeps_its_key_in_memory_and_its_certificates_in_bounds(tmp_path: Path) -> None:
    authority = Authority()
    assert authority.context("a.test", "h2") is authority.context("a.test", "h2")
    assert "PRIVATE" not in authority.certificate
    for name in ("a.test", "127.0.0.1", "::1", "x" * 60 + "." + "y" * 60 + ".test"):
        leaf, ca = tmp_path / "leaf.pem", tmp_path / "ca.pem"
        leaf.write_bytes(authority.mint(name))
        ca.write_text(authority.certificate)
        flag = "-verify_ip" if name[0] in "1:" else "-verify_hostname"
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", flag, name, "-CAfile", str(ca), str(leaf)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
