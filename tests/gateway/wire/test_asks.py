"""Requests that wait, and when what is sent leaves."""

# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from purplebox.gateway.wire import jsonrpc
from purplebox.gateway.wire.asks import Asks
from purplebox.gateway.wire.jsonrpc import Message, RpcError
from purplebox.gateway.wire.stdio import Pipe


def test_each_request_has_its_own_deadline_and_progress_starts_it_anew() -> None:
    async def go() -> None:
        asks, sent = Asks(), list[Message]()

        def ask(seconds: float, token: Any = None) -> asyncio.Task[Any]:
            params = {"_meta": {"progressToken": token}} if token else None
            heard: Any = lambda said: None  # noqa: E731
            work = asks.ask(sent.append, "m", params, seconds=seconds, progress=heard)
            return asyncio.create_task(work)

        late, early, kept = ask(3600), ask(0.05), ask(600, "mine")
        forever = ask(float("inf"))
        await asyncio.sleep(0)
        deadline = asks._waiting[sent[2]["id"]].deadline
        assert asks.progressed({"progressToken": sent[2]["id"], "progress": 1})
        assert asks._waiting[sent[2]["id"]].deadline > deadline
        with pytest.raises(RpcError) as caught:
            await early
        assert caught.value.code == jsonrpc.TIMED_OUT
        assert sent[-1]["params"] == {"requestId": sent[1]["id"], "reason": "timed out"}
        asks.settle(jsonrpc.result(sent[2]["id"], "in time"))
        assert await kept == "in time"
        asks.settle(jsonrpc.result(sent[0]["id"], "late"))
        assert await late == "late"
        asks.close("gone")
        with pytest.raises(RpcError, match="gone"):
            await forever

    asyncio.run(go())


def test_what_is_sent_leaves_at_once_and_while_frames_come_in_bunches_together_in_order() -> None:
    async def go() -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        nobody: Any = {"on_closed": lambda: None, "on_oversize": lambda head: None}
        bunch = asyncio.Event()
        pipe = Pipe(ours_in, ours_out, on_frame=lambda frame: bunch.set(), **nobody)
        pipe.start()
        for text in (b"1\n", b"2\n", b"3\n"):
            pipe.send(text)
        assert os.read(theirs_in, 100) == b"1\n2\n3\n"
        os.write(theirs_out, b"several\nat once\n")
        await bunch.wait()
        for text in (b"1\n", b"2\n", b"3\n"):
            pipe.send(text)
        assert os.read(theirs_in, 100) == b"1\n"
        assert pipe.buffered_bytes == 4
        await asyncio.sleep(0)
        assert os.read(theirs_in, 100) == b"2\n3\n"
        large = os.urandom(1 << 20).replace(b"\n", b" ") + b"\n"  # more than a pipe takes at once
        pipe.send(large)
        pipe.send(b"4\n")
        got = b""
        while not got.endswith(b"\n4\n"):
            got += await asyncio.to_thread(os.read, theirs_in, 1 << 16)
        assert got == large + b"4\n"
        assert pipe.buffered_bytes == 0
        os.close(theirs_in)
        pipe.send(b"5\n")  # nobody reads: no exception here
        await asyncio.sleep(0)
        await pipe.aclose()
        os.close(theirs_out)

    asyncio.run(go())
