# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Streamable HTTP: both eras over a real socket, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx2
import pytest
from mcp import Client

from purplebox.gateway.server import serve_http
from purplebox.gateway.wire.builtin import cacheable, described
from purplebox.gateway.wire.jsonrpc import notification
from purplebox.gateway.wire.router import Single

KEY = "io.modelcontextprotocol/"
ENVELOPE: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28", KEY + "clientCapabilities": {"elicitation": {}},
}  # fmt: skip
ACCEPT = {"accept": "application/json, text/event-stream"}
MODERN = {**ACCEPT, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}


class Served:
    """A backend that remembers what each session of it has seen."""

    name = "served"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def describe(self, client: Any, exchange: Any) -> Any:
        kinds: Any = {"capabilities": {"tools": {}, "logging": {}}}
        return described(client, {"name": "served", "version": "1"}, kinds)

    async def request(self, exchange: Any, method: str, params: Any) -> Any:
        if method == "tools/list":
            tools = [{"name": "t", "inputSchema": {"type": "object"}}]
            return cacheable(exchange.client, {"tools": tools})
        name = params["name"]
        self.seen.append(params.get("arguments"))
        if name == "tell":
            exchange.emit(notification("notifications/message", {"level": "info", "data": "hi"}))
            exchange.progress({"progress": 1})
        if name == "ask":
            answer = await exchange.ask("elicitation/create", {"message": "?", "mode": "form",
                "requestedSchema": {"type": "object", "properties": {}}})  # fmt: skip
            return {"content": [{"type": "text", "text": json.dumps(answer["action"])}]}
        if name == "forever":
            try:
                await asyncio.Event().wait()
            finally:
                self.seen.append("ended")
        return {"content": [{"type": "text", "text": json.dumps(self.seen)}]}

    def notified(self, client: Any, method: str, params: Any) -> None:
        pass

    async def aclose(self) -> None:
        pass


@contextlib.asynccontextmanager
async def served(token: str = "", backend: Callable[[], Any] = Served) -> AsyncGenerator[str]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve_http(lambda _: Single(backend()), "127.0.0.1", 0, token, port.set_result)
    )
    try:
        yield f"http://127.0.0.1:{await port}/mcp"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def rpc(method: str, params: Any = None, id: Any = 1) -> Any:
    message = {"jsonrpc": "2.0", "id": id, "method": method}
    return message if params is None else {**message, "params": params}


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
def test_the_sdks_client_is_served_in_both_eras(mode: Any) -> None:
    async def elicited(context: Any, params: Any) -> Any:
        import mcp_types as types

        return types.ElicitResult(action="accept", content={})

    said: list[Any] = []

    async def reported(
        progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        said.append(progress)

    async def go() -> None:
        async with (
            served() as url,
            Client(url, mode=mode, elicitation_callback=elicited) as client,
        ):
            assert [t.name for t in (await client.list_tools()).tools] == ["t"]
            await client.call_tool("tell", {"a": 1}, progress_callback=reported)
            result: Any = await client.call_tool("ask", {})
            assert result.content[0].text == '"accept"'
        assert said == [1]

    asyncio.run(go())


def test_foreign_hosts_origins_and_tokens_are_refused() -> None:
    async def go() -> None:
        async with served("s3cret") as url, httpx2.AsyncClient() as http:
            good = {**MODERN, "authorization": "Bearer s3cret"}
            body = rpc("tools/list", {"_meta": ENVELOPE})
            own = url.removesuffix("/mcp")
            for headers, status in (
                (good, 200), ({**good, "origin": own}, 200), ({**good, "origin": "http://evil.test"}, 403),
                ({**good, "origin": "null"}, 403), ({**good, "host": "evil.test"}, 403),
                ({**good, "authorization": "Bearer other"}, 401), (MODERN, 401),
                ({**good, "accept": "application/json"}, 406),
                ({**good, "content-type": "text/plain"}, 415),
            ):  # fmt: skip
                answer = await http.post(url, json=body, headers=headers)
                assert answer.status_code == status, (headers, answer.text)
            assert (await http.post(own + "/other", json=body, headers=good)).status_code == 404

    asyncio.run(go())


def test_modern_headers_must_agree_with_the_body() -> None:
    async def go() -> None:
        async with served() as url, httpx2.AsyncClient() as http:
            call = rpc("tools/call", {"name": "té", "_meta": ENVELOPE})
            right = {**MODERN, "mcp-method": "tools/call", "mcp-name": "=?base64?dMOp?="}
            assert (await http.post(url, json=call, headers=right)).status_code == 200
            for wrong in ({"mcp-name": "other"}, {"mcp-method": "tools/list"}, {"mcp-name": "=?base64?!?="},
                          {"mcp-protocol-version": "2025-11-25"}):  # fmt: skip
                answer = await http.post(url, json=call, headers={**right, **wrong})
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)
            answer = await http.post(
                url, content=b'{"id":3', headers={**MODERN, "content-type": "application/json"}
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)

    asyncio.run(go())


def test_legacy_sessions_are_apart_and_end() -> None:
    hello = rpc("initialize", {"protocolVersion": "2025-11-25", "capabilities": {},
                               "clientInfo": {"name": "t", "version": "1"}})  # fmt: skip

    async def go() -> None:
        async with served() as url, httpx2.AsyncClient() as http:
            names: list[str] = []
            for _ in range(2):
                answer = await http.post(url, json=hello, headers=ACCEPT)
                names.append(answer.headers["mcp-session-id"])
            assert names[0] != names[1]
            for name in names:
                call = rpc("tools/call", {"name": "x", "arguments": {"of": name}})
                headers = {**ACCEPT, "mcp-session-id": name}
                text = (await http.post(url, json=call, headers=headers)).json()["result"][
                    "content"
                ][0]["text"]
                assert json.loads(text) == [{"of": name}]  # nothing of the other's
            assert (await http.post(url, json=rpc("ping"), headers=ACCEPT)).status_code == 400
            lost = {**ACCEPT, "mcp-session-id": "f" * 32}
            assert (await http.post(url, json=rpc("ping"), headers=lost)).status_code == 404
            first = {**ACCEPT, "mcp-session-id": names[0]}
            assert (await http.delete(url, headers=first)).status_code == 200
            assert (await http.post(url, json=rpc("ping"), headers=first)).status_code == 404

    asyncio.run(go())


def test_a_modern_client_that_hangs_up_cancels_its_call_and_equal_ids_do_not_meet() -> None:
    backend = Served()

    async def go() -> None:
        async with served(backend=lambda: backend) as url, httpx2.AsyncClient() as http:
            headers = {**MODERN, "mcp-method": "tools/call", "mcp-name": "forever"}
            body = rpc("tools/call", {"name": "forever", "_meta": ENVELOPE})
            one = asyncio.create_task(http.post(url, json=body, headers=headers))
            two = asyncio.create_task(http.post(url, json=body, headers=headers))
            async with asyncio.timeout(10):
                while len(backend.seen) < 2:
                    await asyncio.sleep(0.01)
                one.cancel()
                while "ended" not in backend.seen:
                    await asyncio.sleep(0.01)
                assert backend.seen.count("ended") == 1
                assert not two.done()
                two.cancel()
                await asyncio.gather(one, two, return_exceptions=True)

    asyncio.run(go())
