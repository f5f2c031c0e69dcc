"""Clients on the other side of the wire: plain JSON, and the SDK's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from purplebox.gateway.server import serve_pipe
from purplebox.gateway.wire.session import Handler, Session
from purplebox.gateway.wire.stdio import Pipe

Serve = Callable[[Session], Handler]


class Wire:
    """A client that sends and receives what a test tells it to, byte by byte."""

    def __init__(self, reader: int, writer: int) -> None:
        self.received: list[dict[str, Any]] = []
        self.closed = asyncio.Event()
        self._news = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self.pipe = Pipe(
            reader, writer, on_frame=self._frame, on_closed=self._closed,
            on_oversize=lambda _: None, max_frame_bytes=256 << 20,
        )  # fmt: skip
        self.pipe.start()
        self._last = 0

    def _closed(self) -> None:
        self.closed.set()
        self._news.set()

    def _frame(self, frame: bytes) -> None:
        self.received.append(json.loads(frame))
        self._news.set()

    def served_by(self, task: asyncio.Task[None]) -> None:
        """Have who waits hear of it when the server ends, and what of."""
        self._server = task
        task.add_done_callback(lambda _: self._news.set())

    def send(self, message: Any) -> None:
        """A frame; bytes go out as they are."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.pipe.send(data + b"\n")

    async def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 240.0) -> Any:
        """The first message received, ever, that is wanted."""
        async with asyncio.timeout(seconds):
            while True:
                for message in self.received:
                    if wanted(message):
                        return message
                if self._server is not None and self._server.done():
                    self._server.result()
                    if self.closed.is_set():
                        raise AssertionError("the server has ended without it")
                self._news.clear()
                await self._news.wait()

    async def answer(self, id: Any) -> Any:
        """The response to `id`."""
        return await self.until(lambda m: "method" not in m and m.get("id") == id)

    async def ask(self, method: str, params: Any = None, id: Any = None) -> Any:
        """Send a request and return its response."""
        self._last += 1
        id = f"c{self._last}" if id is None else id
        message = {"jsonrpc": "2.0", "id": id, "method": method}
        self.send(message if params is None else {**message, "params": params})
        return await self.answer(id)

    async def initialize(self, **capabilities: Any) -> Any:
        """Open a legacy session."""
        hello = {
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "clientInfo": {"name": "test", "version": "1"},
        }  # fmt: skip
        answer = await self.ask("initialize", hello)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer


@contextlib.asynccontextmanager
async def wired(serve: Serve) -> AsyncGenerator[Wire]:
    """A raw client of `serve`, over pipes."""
    there, up = os.pipe()
    down, here = os.pipe()
    server = asyncio.create_task(serve_pipe(serve, there, here))
    wire = Wire(down, up)
    wire.served_by(server)
    try:
        yield wire
    finally:
        await wire.pipe.aclose()
        await server


@contextlib.asynccontextmanager
async def transport(serve: Serve) -> AsyncGenerator[Any]:
    """The same for the SDK's client."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    there, up = os.pipe()
    down, here = os.pipe()
    server = asyncio.create_task(serve_pipe(serve, there, here))
    into, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](100_000)
    outgoing, out = anyio.create_memory_object_stream[SessionMessage](0)
    pipe = Pipe(
        down, up, on_closed=into.close, on_oversize=lambda _: None,
        on_frame=lambda frame: into.send_nowait(
            SessionMessage(jsonrpc_message_adapter.validate_json(frame, by_name=False))
        ),
    )  # fmt: skip
    pipe.start()

    async def send() -> None:
        async with out:
            async for message in out:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                pipe.send(text.encode() + b"\n")

    sender = asyncio.create_task(send())
    try:
        async with incoming:
            yield incoming, outgoing
    finally:
        sender.cancel()
        outgoing.close()
        await pipe.aclose()
        await server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow because everything is does not count as one that is down."""
    from purplebox.gateway.wire import aggregate

    monkeypatch.setattr(aggregate, "START_SECONDS", 240.0)
    monkeypatch.setattr(aggregate, "LIST_SECONDS", 240.0)


@pytest.fixture
def raw_client() -> Callable[[Serve], contextlib.AbstractAsyncContextManager[Wire]]:
    return wired


@pytest.fixture
def sdk_transport() -> Callable[[Serve], contextlib.AbstractAsyncContextManager[Any]]:
    return transport


@pytest.fixture
def wire_type() -> type[Wire]:
    return Wire
