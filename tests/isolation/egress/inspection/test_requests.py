"""`tls: inspect` against live servers, with clients that know nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress.ca import Authority
from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Gate, GateTo, Server

pytestmark = pytest.mark.anyio
HOST = "api.test"


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
            socket.create_connection(("127.0.0.1", gate.port), timeout=120) as sock,
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


async def test_plain_http_is_judged_too(gate_to: GateTo, plain_server: Server, tmp_path: Path,
                                        servers_authority: tuple[Authority, Path]) -> None:  # fmt: skip
    async with gate_to(plain_server.server_port) as gate:
        assert (await gate.curl(scheme="http"))[0] == 200
        assert (await gate.curl(scheme="http", path="/admin"))[0] == 403
        # h2c would be a way past: its upgrade is not passed on.
        assert (await gate.curl("--http2", scheme="http"))[0] == 200
        assert "Upgrade" not in plain_server.seen[-1]["headers"]


async def test_other_protocols_pass_only_where_no_look_is_asked_for(
    gate_to: GateTo, tmp_path: Path, servers_authority: tuple[Authority, Path]
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[1]
    async with gate_to(target) as gate:
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


async def test_a_body_that_waits_for_100_continue_is_asked_for_where_it_may_be_sent(
    gate: Gate, server: Server
) -> None:
    def talk(path: str) -> tuple[bytes, bytes]:
        head = gate.request(f"PUT {path}", "Content-Length: 4", "Expect: 100-continue")
        context = ssl.create_default_context(cafile=str(gate.bundle))
        with (
            socket.create_connection(("127.0.0.1", gate.port), timeout=120) as sock,
            context.wrap_socket(sock, server_hostname=HOST) as tls,
        ):
            tls.sendall(head)
            first = tls.recv(65536)  # before anything of the body was sent
            found = first
            if b" 100 " in first:
                tls.sendall(b"abcd")
            while chunk := tls.recv(65536):
                found += chunk
            return first, found

    first, found = await asyncio.to_thread(talk, "/repos/a")
    assert first.startswith(b"HTTP/1.1 100 ") and b"HTTP/1.1 200 " in found
    assert server.seen[-1]["length"] == 4
    first, _ = await asyncio.to_thread(talk, "/admin")
    assert first.startswith(b"HTTP/1.1 403 ") and len(server.seen) == 1
