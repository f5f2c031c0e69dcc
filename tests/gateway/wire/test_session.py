"""A session as a client sees it, with backends that do what a test says."""

# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from purplebox.gateway.wire import jsonrpc
from purplebox.gateway.wire.builtin import described
from purplebox.gateway.wire.exchange import Exchange
from purplebox.gateway.wire.jsonrpc import MAX_FRAME_BYTES, RpcError
from purplebox.gateway.wire.rate import Rate
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.stdio import Pipe

Connect = Callable[..., AbstractAsyncContextManager[Any]]
ENVELOPE: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
}


class Scripted:
    """A backend whose requests are answered by functions."""

    name = "scripted"

    def __init__(self, **methods: Callable[[Exchange], Awaitable[Any]]) -> None:
        self.methods = methods
        self.notes: list[tuple[str, Any]] = []
        self.closed = False

    async def describe(self, client: Any, exchange: Any) -> Any:
        return described(client, {"name": "scripted", "version": "1"}, {"capabilities": {}})

    async def request(self, exchange: Exchange, method: str, params: Any) -> Any:
        return await self.methods[method.replace("/", "_")](exchange)

    def notified(self, client: Any, method: str, params: Any) -> None:
        self.notes.append((method, params))

    async def aclose(self) -> None:
        self.closed = True


def serve(backend: Scripted) -> Callable[[Session], Single]:
    return lambda _: Single(backend)


def test_unreadable_frames_are_answered_and_the_session_goes_on(raw_client: Connect) -> None:
    async def go() -> None:
        async def echo(exchange: Exchange) -> Any:
            return {"got": exchange.params}

        async with raw_client(serve(Scripted(echo=echo))) as wire:
            await wire.initialize()
            wire.send(b'{"jsonrpc":"2.0","id":77,"method":"echo","params":{')
            assert (await wire.answer(77))["error"]["code"] == -32700
            wire.send({"jsonrpc": "2.0", "id": 78, "method": "echo", "params": [1]})
            assert (await wire.answer(78))["error"]["code"] == -32600
            wire.send(b'{"jsonrpc":"2.0","id":79,"method":"echo","pad":"' + b"x" * MAX_FRAME_BYTES)
            assert "64 MiB" in (await wire.answer(79))["error"]["message"]
            wire.send(b'x"}')
            answer = await wire.ask("echo", {"v": 2**70})
            assert answer["result"] == {"got": {"v": 2**70}}

    asyncio.run(go())


def test_a_cancellation_of_what_is_no_id_cancels_nothing_and_loses_nothing(
    raw_client: Connect,
) -> None:
    async def go() -> None:
        started, finish = asyncio.Event(), asyncio.Event()

        async def held(_: Exchange) -> Any:
            started.set()
            await finish.wait()
            return {}

        async def quick(_: Exchange) -> Any:
            return {}

        async with raw_client(serve(Scripted(held=held, quick=quick))) as wire:
            await wire.initialize()
            wire.send({"jsonrpc": "2.0", "id": 1, "method": "held"})
            await started.wait()
            wrong: list[Any] = [[], {}, True, 1.0, None]
            for number, id in enumerate(wrong, 10):
                cancel = {
                    "jsonrpc": "2.0",
                    "method": "notifications/cancelled",
                    "params": {"requestId": id},
                }
                after = {"jsonrpc": "2.0", "id": number, "method": "quick"}
                wire.send(jsonrpc.encode(cancel) + b"\n" + jsonrpc.encode(after))  # in one piece
                assert (await wire.answer(number))["result"] == {}
            finish.set()
            assert (await wire.answer(1))["result"] == {}

    asyncio.run(go())


def test_a_cancelled_request_is_not_answered_and_its_reason_is_known(raw_client: Connect) -> None:
    seen: list[Any] = []

    async def go() -> None:
        started = asyncio.Event()

        async def forever(exchange: Exchange) -> Any:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(exchange.reason)

        async def quick(_: Exchange) -> Any:
            return {}

        async with raw_client(serve(Scripted(forever=forever, quick=quick))) as wire:
            await wire.initialize()
            wire.send({"jsonrpc": "2.0", "id": 5, "method": "forever"})
            await started.wait()
            cancel = {"requestId": 5, "reason": "changed my mind", "x": 1}
            wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel})
            assert (await wire.ask("quick"))["result"] == {}
            assert not [m for m in wire.received if m.get("id") == 5]
            assert (await wire.ask("quick", id=5))["result"] == {}  # the id is free again
        assert seen == [{"requestId": 5, "reason": "changed my mind", "x": 1}]

    asyncio.run(go())


def test_ids_in_use_are_refused_and_types_kept_apart(raw_client: Connect) -> None:
    async def go() -> None:
        release = asyncio.Event()

        async def wait(exchange: Exchange) -> Any:
            await release.wait()
            return {"id": exchange.id}

        async with raw_client(serve(Scripted(wait=wait))) as wire:
            await wire.initialize()
            for id in (1, "1", 1):
                wire.send({"jsonrpc": "2.0", "id": id, "method": "wait"})
            refused = await wire.until(lambda m: "error" in m)
            assert refused["id"] == 1
            release.set()
            assert (await wire.until(lambda m: m.get("result") == {"id": "1"}))["id"] == "1"
            assert (await wire.until(lambda m: m.get("result") == {"id": 1}))["id"] == 1

    asyncio.run(go())


def test_the_first_request_settles_the_era(raw_client: Connect) -> None:
    async def echo(exchange: Exchange) -> Any:
        return {"era": exchange.client.era}

    async def go() -> None:
        async with raw_client(serve(Scripted(echo=echo))) as wire:
            found = await wire.ask("server/discover", {"_meta": ENVELOPE})
            assert found["result"]["supportedVersions"] == ["2026-07-28"]
            refused = await wire.initialize()
            assert refused["error"]["code"] == -32022
            assert refused["error"]["data"] == {
                "supported": ["2026-07-28"],
                "requested": "2025-11-25",
            }
            answer = await wire.ask("echo", {"_meta": ENVELOPE})
            assert answer["result"] == {"era": "modern", "resultType": "complete"}
            bare = await wire.ask("echo", {})
            assert bare["error"]["code"] == -32602
            newer: Any = {**ENVELOPE, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}
            assert (await wire.ask("echo", {"_meta": newer}))["error"]["code"] == -32022
        async with raw_client(serve(Scripted(echo=echo))) as wire:
            assert (await wire.ask("ping"))["result"] == {}
            assert (await wire.ask("echo"))["error"]["code"] == -32600
            assert (await wire.initialize())["result"]["protocolVersion"] == "2025-11-25"
            assert (await wire.ask("echo", {"_meta": ENVELOPE}))["error"]["code"] == -32600
            assert (await wire.ask("echo"))["result"] == {"era": "legacy"}

    asyncio.run(go())


def test_a_legacy_client_is_asked_by_request_and_its_error_comes_back_whole(
    raw_client: Connect,
) -> None:
    async def ask(exchange: Exchange) -> Any:
        try:
            return await exchange.ask("elicitation/create", {"message": "?", "x": 1})
        except RpcError as error:
            return {"refused": error.error}

    async def go() -> None:
        async with raw_client(serve(Scripted(ask=ask))) as wire:
            await wire.initialize(elicitation={})
            for reply in (
                {"result": {"action": "accept"}},
                {"error": {"code": 5, "message": "no", "y": 2}},
            ):
                wire.send({"jsonrpc": "2.0", "id": "q", "method": "ask"})
                question = await wire.until(lambda m: m.get("method") == "elicitation/create")
                wire.received.remove(question)
                assert question["params"] == {"message": "?", "x": 1}
                wire.send({"jsonrpc": "2.0", "id": question["id"], **reply})
                answer = await wire.answer("q")
                wire.received.remove(answer)
                assert answer["result"] == reply.get("result", {"refused": reply.get("error")})

    asyncio.run(go())


def test_a_modern_client_is_asked_by_input_required_and_only_its_own_retry_goes_on(
    raw_client: Connect,
) -> None:
    async def ask(exchange: Exchange) -> Any:
        first = await exchange.ask("elicitation/create", {"message": "1?"})
        second = await exchange.ask("elicitation/create", {"message": "2?"})
        return {"answers": [first, second]}

    async def go() -> None:
        async with raw_client(serve(Scripted(ask=ask))) as wire:
            params: dict[str, Any] = {"_meta": ENVELOPE, "name": "n"}
            result = (await wire.ask("ask", params))["result"]
            for number in ("1?", "2?"):
                assert result["resultType"] == "input_required"
                [(key, question)] = result["inputRequests"].items()
                assert question == {"method": "elicitation/create", "params": {"message": number}}
                retry: Any = {
                    **params, "requestState": result["requestState"],
                    "inputResponses": {key: {"action": "accept", "n": number}},
                }  # fmt: skip
                for forged in (
                    {**retry, "requestState": retry["requestState"][:-3] + "AAA"},
                    {**retry, "name": "another"},
                ):
                    assert (await wire.ask("ask", forged))["error"]["code"] == -32602
                result = (await wire.ask("ask", retry))["result"]
                assert (await wire.ask("ask", retry))["error"]["code"] == -32602  # used
            assert [a["n"] for a in result["answers"]] == ["1?", "2?"]

    asyncio.run(go())


def test_everything_ends_when_the_client_hangs_up(raw_client: Connect) -> None:
    ended: list[str] = []

    async def go() -> None:
        started = asyncio.Event()

        async def forever(exchange: Exchange) -> Any:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("call")

        async def parked(exchange: Exchange) -> Any:
            try:
                return await exchange.ask("elicitation/create", {})
            finally:
                ended.append("parked")

        backend = Scripted(forever=forever, parked=parked)
        async with raw_client(serve(backend)) as wire:
            await wire.ask("parked", {"_meta": ENVELOPE})
            message = {"jsonrpc": "2.0", "id": 5, "method": "forever"}
            wire.send({**message, "params": {"_meta": ENVELOPE}})
            await started.wait()
        assert sorted(ended) == ["call", "parked"]
        assert backend.closed

    asyncio.run(go())


def test_a_pipe_carries_fifty_megabytes_and_does_not_pile_up_behind_a_stopped_reader() -> None:
    import os

    async def go() -> None:
        frames: list[int] = []
        done = asyncio.Event()

        def frame(data: bytes) -> None:
            frames.append(len(data))
            if len(frames) == 3:
                done.set()

        there, up = os.pipe()
        down, here = os.pipe()
        nobody: Any = dict(on_closed=lambda: None, on_oversize=lambda head: None)
        left = Pipe(down, up, on_frame=lambda _: None, **nobody)
        right = Pipe(there, here, on_frame=frame, **nobody)
        right.start()
        right.pause()
        left.send(b"a\n")
        left.send(b"x" * (50 << 20) + b"\n")
        left.send(b"b\n")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert left.buffered_bytes > 49 << 20
        right.resume()
        await asyncio.wait_for(done.wait(), 120)
        assert frames == [1, 50 << 20, 1]
        assert left.buffered_bytes == 0
        await left.aclose()
        await right.aclose()

    asyncio.run(go())


def test_what_comes_too_fast_is_refused_and_nobody_is_left_waiting() -> None:
    class Here:
        buffered_bytes = 0

        def __init__(self) -> None:
            self.got: list[Any] = []

        def send(self, message: Any) -> None:
            self.got.append(message)

    async def go() -> None:
        now, sink, backend = 0.0, Here(), Scripted()
        session = Session(serve(backend), sink, rate=Rate(4, clock=lambda: now))

        def send(**message: Any) -> None:
            session.receive_frame(jsonrpc.encode({"jsonrpc": "2.0", **message}), sink)

        hello: Any = {"protocolVersion": "2025-11-25", "capabilities": {"roots": {}}}
        send(id=1, method="initialize", params=hello)
        await session.finish(1)
        asked = asyncio.create_task(session.ask("roots/list", None, None))
        await asyncio.sleep(0)
        id = sink.got[-1]["id"]
        for n in range(3):
            send(method="notifications/one", params={"n": n})
        send(id=5, method="echo")  # the fifth
        session.receive_frame(b'{"jsonrpc":"2.0","id":6,"method":', sink)
        send(method="notifications/two")
        codes = {m["id"]: m["error"]["code"] for m in sink.got if "error" in m}
        assert codes == {5: -32053, 6: -32053}
        assert sink.got[-1]["error"]["data"] == {"retryAfterMs": 250}
        send(id=id, result={"roots": []})  # an answer is waited for
        assert await asked == {"roots": []}
        assert [name for name, _ in backend.notes] == ["notifications/one"] * 3
        now = 0.26
        send(method="notifications/three")
        assert backend.notes[-1][0] == "notifications/three"
        await session.aclose()

    asyncio.run(go())
