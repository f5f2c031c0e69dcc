"""HTTP/2 through the gate, stream by stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import pytest

from purplebox.isolation.egress.ca import Authority

if TYPE_CHECKING:
    from .conftest import Gate, GateTo

pytestmark = pytest.mark.anyio
HOST = "api.test"


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
    gate_to: GateTo, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> AsyncGenerator[tuple[Gate, Http2Server]]:
    behind = Http2Server()
    context = servers_authority[0].context(HOST, "h2")
    server = await asyncio.start_server(behind.serve, "127.0.0.1", 0, ssl=context)
    async with gate_to(server.sockets[0].getsockname()[1]) as gate:
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


async def test_http2_in_the_clear_is_judged_too(gate_to: GateTo) -> None:
    behind = Http2Server()
    server = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
    async with gate_to(server.sockets[0].getsockname()[1]) as gate:
        ask = ("--http2-prior-knowledge",)
        assert await gate.curl(*ask, scheme="http") == (200, "hello")
        assert gate.version == "2"
        status, body = await gate.curl(*ask, scheme="http", path="/admin")
        assert (status, gate.version) == (403, "2") and "network.allow[0]" in body
        assert (await gate.curl(*ask, "-H", "Host: other.test", scheme="http"))[0] == 421
        assert behind.paths == ["/repos/a"]
    server.close()
