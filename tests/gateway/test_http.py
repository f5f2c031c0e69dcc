# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Streamable HTTP: both eras over a real socket, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import httpx2
import pytest
from mcp import Client

from purplebox.gateway.server import Listen, serve_http
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
        self.go = asyncio.Event()

    async def describe(self, client: Any, exchange: Any) -> Any:
        kinds: Any = {"capabilities": {"tools": {}, "logging": {}}}
        return described(client, {"name": "served", "version": "1"}, kinds)

    async def request(self, exchange: Any, method: str, params: Any) -> Any:
        if method == "tools/list":
            region = {"type": "string", "x-mcp-header": "Region"}
            count = {"type": "integer", "x-mcp-header": "Count"}
            schema = {"type": "object", "properties": {"region": region, "count": count}}
            tools = [{"name": "t", "inputSchema": schema}]
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
        if name == "later":
            exchange.progress({"progress": 1})
            await self.go.wait()
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
async def served(
    tokens: Mapping[str, str] | None = None, backend: Callable[[], Any] = Served,
    stream_seconds: float = 300.0, frames_a_second: float = 20_000,
) -> AsyncGenerator[str]:  # fmt: skip
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    listen = Listen(
        host="127.0.0.1", port=0, tokens=tokens or {}, stream_seconds=stream_seconds,
        frames_a_second=frames_a_second,
    )  # fmt: skip
    task = asyncio.create_task(serve_http(lambda _: Single(backend()), listen, port.set_result))
    try:
        yield f"http://127.0.0.1:{await port}/mcp"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def rpc(method: str, params: Any = None, id: Any = 1) -> Any:
    message = {"jsonrpc": "2.0", "id": id, "method": method}
    return message if params is None else {**message, "params": params}


def answer_in(stream: str) -> Any:
    """The last message of an event stream."""
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")][-1]


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


def test_a_body_does_not_wait_for_its_heads_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []
    real = socket.create_server

    def create_server(*args: Any, **more: Any) -> socket.socket:
        made.append(real(*args, **more))
        return made[-1]

    async def go() -> None:
        async with served() as url, httpx2.AsyncClient() as client:
            await client.post(url, json=rpc("ping"), headers=ACCEPT)
            (listener,) = made
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    monkeypatch.setattr(socket, "create_server", create_server)
    asyncio.run(go())


def test_foreign_hosts_origins_and_tokens_are_refused() -> None:
    async def go() -> None:
        async with served({"one": "s3cret"}) as url, httpx2.AsyncClient() as http:
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
                asked = answer.headers.get("www-authenticate")
                assert asked == ("Bearer" if status == 401 else None)
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
                answer = answer_in((await http.post(url, json=call, headers=headers)).text)
                text = answer["result"]["content"][0]["text"]
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
            async with asyncio.timeout(120):
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


def test_annotated_arguments_must_agree_with_their_headers() -> None:
    async def go() -> None:
        async with served() as url, httpx2.AsyncClient() as http:
            for arguments, sent, status in (
                ({"region": "eu"}, {"mcp-param-region": "eu"}, 200),
                ({"region": "eü"}, {"mcp-param-region": "=?base64?ZcO8?="}, 200),
                ({"count": 3}, {"mcp-param-count": "3.0"}, 200),
                ({}, {}, 200),
                ({"region": None}, {}, 200),
                ({"region": "eu"}, {"mcp-param-region": "us"}, 400),
                ({"region": "eu"}, {}, 400),
                ({"region": "eü"}, {"mcp-param-region": "=?base64?ZcO8"}, 400),
                ({}, {"mcp-param-region": "eu"}, 400),
                ({"count": 3}, {"mcp-param-count": "4"}, 400),
            ):  # fmt: skip
                call = rpc("tools/call", {"name": "t", "arguments": arguments, "_meta": ENVELOPE})
                headers = {**MODERN, "mcp-method": "tools/call", "mcp-name": "t", **sent}
                answer = await http.post(url, json=call, headers=headers)
                assert answer.status_code == status, (arguments, sent, answer.text)
                if status == 400:
                    assert answer.json()["error"]["code"] == -32020
                    assert answer.json()["id"] == 1

    asyncio.run(go())


def events_in(stream: str) -> list[tuple[str, Any]]:
    """Id and message of each event; None for one without data."""
    found: list[tuple[str, Any]] = []
    for block in stream.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("id"):
            found.append((fields["id"], json.loads(fields["data"]) if fields.get("data") else None))
    return found


async def opened(http: Any, url: str, **headers: str) -> dict[str, str]:
    """The headers of a new legacy session."""
    hello = rpc("initialize", {"protocolVersion": "2025-11-25", "capabilities": {},
                               "clientInfo": {"name": "t", "version": "1"}})  # fmt: skip
    answer = await http.post(url, json=hello, headers={**ACCEPT, **headers})
    return {**ACCEPT, **headers, "mcp-session-id": answer.headers["mcp-session-id"]}


def test_a_stream_that_ends_goes_on_where_the_client_was() -> None:
    backend = Served()

    async def go() -> None:
        async with (
            served(backend=lambda: backend, stream_seconds=3.0) as url,
            httpx2.AsyncClient() as http,
        ):
            mine, other = await opened(http, url), await opened(http, url)
            call = rpc("tools/call", {"name": "later", "_meta": {"progressToken": "p"}})
            first = events_in((await http.post(url, json=call, headers=mine)).text)
            assert [m and m["method"] for _, m in first] == [None, "notifications/progress"]
            backend.go.set()
            resume = {**mine, "last-event-id": first[0][0]}
            again = events_in((await http.get(url, headers=resume)).text)
            assert [m and m.get("id", m.get("method")) for _, m in again] == [
                None, "notifications/progress", 1,
            ]  # fmt: skip
            assert again[1] == first[1]  # nothing twice, nothing lost, the same ids
            last = {**mine, "last-event-id": again[1][0]}
            tail = events_in((await http.get(url, headers=last)).text)
            assert [m and m["id"] for _, m in tail] == [None, 1]
            # What is another's, or never was, is not there.
            for wrong in ({**other, "last-event-id": first[0][0]}, {**mine, "last-event-id": "9-1"},
                          {**mine, "last-event-id": "x"}):  # fmt: skip
                assert (await http.get(url, headers=wrong)).status_code == 404

    asyncio.run(go())


def test_each_client_has_its_own_token_and_nothing_of_another() -> None:
    tokens = {"one": "first-token-of-16", "two": "second-token-of-16"}
    backends: list[Served] = []

    def made() -> Served:
        backends.append(Served())
        return backends[-1]

    async def go() -> None:
        async with served(tokens, backend=made) as url, httpx2.AsyncClient() as http:
            bearers = [{"authorization": f"Bearer {token}"} for token in tokens.values()]
            for number, bearer in enumerate(bearers):
                call = rpc(
                    "tools/call", {"name": "t2", "arguments": {"n": number}, "_meta": ENVELOPE}
                )
                headers = {**MODERN, **bearer, "mcp-method": "tools/call", "mcp-name": "t2"}
                answer = (await http.post(url, json=call, headers=headers)).json()["result"]
                assert json.loads(answer["content"][0]["text"]) == [{"n": number}]
            assert len(backends) == 2  # one for each principal
            mine = await opened(http, url, **bearers[0])
            stolen = {**mine, **bearers[1]}
            assert (await http.post(url, json=rpc("ping"), headers=mine)).status_code == 200
            assert (await http.post(url, json=rpc("ping"), headers=stolen)).status_code == 404
            assert (await http.delete(url, headers=stolen)).status_code == 404
            bare = {k: v for k, v in mine.items() if k != "authorization"}
            assert (await http.post(url, json=rpc("ping"), headers=bare)).status_code == 401

    asyncio.run(go())


def test_a_client_that_sends_too_fast_is_told_so_and_the_others_are_not() -> None:
    async def go() -> None:
        tokens = {"a": "token-of-a", "b": "token-of-b"}
        slow: Any = served(tokens, frames_a_second=1)
        async with slow as url, httpx2.AsyncClient() as http:

            async def post(token: str, message: Any) -> Any:
                headers = {**MODERN, "mcp-method": "tools/call", "mcp-name": "x",
                           "authorization": f"Bearer token-of-{token}"}  # fmt: skip
                return await http.post(url, json=message, headers=headers)

            call = rpc("tools/call", {"name": "x", "_meta": ENVELOPE}, id=7)
            answers = await asyncio.gather(*(post("a", call) for _ in range(10)))
            assert 200 in [answer.status_code for answer in answers]
            refused = next(a for a in answers if a.status_code == 429).json()
            assert (refused["id"], refused["error"]["code"]) == (7, -32053)
            assert refused["error"]["data"]["retryAfterMs"] >= 1
            assert (await post("b", call)).status_code == 200

    asyncio.run(go())


def test_a_body_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purplebox.gateway.response.BODY_SECONDS", 0.1)

    async def go() -> None:
        async with served() as url:
            host, _, port = url.removesuffix("/mcp").removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /mcp HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 9\r\n" + "".join(
                f"{name}: {value}\r\n" for name, value in
                {"content-type": "application/json", **ACCEPT}.items() if name != "content-type"
            )  # fmt: skip
            writer.write(f"{head}content-type: application/json\r\n\r\n[".encode())
            assert (await reader.readline()).split()[1] == b"408"
            writer.close()

    asyncio.run(go())
