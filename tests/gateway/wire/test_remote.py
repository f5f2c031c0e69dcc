# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportArgumentType=false
"""Servers that are reached by URL: both eras and the transport before them, egress rules, no leak."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Version
from purplebox.gateway.config import ConfigError, ServerSpec, load_servers
from purplebox.gateway.elsewhere import Elsewhere, connector_to, policy_for
from purplebox.gateway.server import Listen, serve_http
from purplebox.gateway.wire.builtin import cacheable, described, stamped
from purplebox.gateway.wire.jsonrpc import notification
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.upstream import Upstream
from purplebox.isolation.egress.dial import SystemResolver
from purplebox.policies import load_policy

KEY = "io.modelcontextprotocol/"
CAPABILITIES: dict[str, Any] = {"elicitation": {}}
ENVELOPE: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28", KEY + "clientCapabilities": CAPABILITIES,
}  # fmt: skip
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Far:
    """A server elsewhere."""

    name = "far"

    async def describe(self, client: Any, exchange: Any) -> Any:
        kinds: Any = {"capabilities": {"tools": {}, "logging": {}}}
        return described(client, {"name": "far", "version": "1"}, kinds)

    async def request(self, exchange: Any, method: str, params: Any) -> Any:
        if method == "tools/list":
            region = {"type": "string", "x-mcp-header": "Region"}
            schema = {"type": "object", "properties": {"region": region}}
            return cacheable(exchange.client, {"tools": [{"name": "t", "inputSchema": schema}]})
        exchange.emit(
            notification("notifications/message", {"level": "info", "data": "on its way"})
        )
        exchange.progress({"progress": 1, "own": 2**70})
        said: Any = params.get("arguments")
        if params["name"] == "ask":
            said = await exchange.ask("elicitation/create", {"message": "?", "mode": "form",
                "requestedSchema": {"type": "object", "properties": {}}})  # fmt: skip
        result = {"content": [{"type": "strange", "said": said}], "own": "\ud800"}
        return stamped(exchange.client, {"name": "far", "version": "1"}, result)

    def notified(self, client: Any, method: str, params: Any) -> None:
        pass

    async def aclose(self) -> None:
        pass


@contextlib.asynccontextmanager
async def far() -> AsyncGenerator[str]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    listen = Listen(host="127.0.0.1", port=0, tokens={"purple": "token-of-the-gateway"})
    task = asyncio.create_task(serve_http(lambda _: Single(Far()), listen, port.set_result))
    try:
        yield f"http://127.0.0.1:{await port}/mcp"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def scripted(answer: Answer) -> AsyncGenerator[int]:
    """A server of bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def through(connect: Any, workspace: Path, **fields: Any) -> AsyncGenerator[Any]:
    """A raw client of the gateway in front of a URL."""
    spec = ServerSpec(**{"name": "far", "profile": "", **fields})
    async with (
        Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway,
        AsyncExitStack() as stack,
    ):
        resolver = SystemResolver()
        stack.callback(resolver.close)
        profile = spec.profile
        own = load_policy(profile) if profile else policy_for(spec, workspace)
        engine = await stack.enter_async_context(Elsewhere(own, None))
        version = Version(policy=own, engine=engine)

        def single(session: Session) -> Single:
            connector = connector_to(spec, own, resolver)
            return Single(Upstream("far", connector, session, gateway.calls, version))

        async with connect(single) as wire:
            yield wire


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_remote_server_is_served_in_both_eras(era: str, workspace: Path, raw_client: Any) -> None:
    async def go() -> None:
        headers = {"Authorization": "Bearer token-of-the-gateway"}
        async with far() as url, through(raw_client, workspace, url=url, headers=headers) as wire:
            meta: dict[str, Any] = {} if era == "legacy" else dict(ENVELOPE)
            if era == "legacy":
                assert (await wire.initialize(**CAPABILITIES))["result"]["serverInfo"][
                    "name"
                ] == "far"
            listed = await wire.ask("tools/list", {"_meta": meta})
            assert [tool["name"] for tool in listed["result"]["tools"]] == ["t"]
            call = {
                "name": "t",
                "arguments": {"region": "eü"},
                "_meta": {**meta, "progressToken": "p"},
            }
            result = (await wire.ask("tools/call", call))["result"]
            assert result["content"] == [{"type": "strange", "said": {"region": "eü"}}]
            assert result["own"] == "\ud800"
            progress = await wire.until(lambda m: m.get("method") == "notifications/progress")
            assert progress["params"] == {"progress": 1, "own": 2**70, "progressToken": "p"}
            ask: dict[str, Any] = {"name": "ask", "_meta": meta}
            if era == "legacy":
                wire.send({"jsonrpc": "2.0", "id": "q", "method": "tools/call", "params": ask})
                asked = await wire.until(lambda m: m.get("method") == "elicitation/create")
                wire.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
                result = (await wire.answer("q"))["result"]
            else:
                parked = (await wire.ask("tools/call", ask))["result"]
                answers = {key: {"action": "decline"} for key in parked["inputRequests"]}
                state = {"inputResponses": answers, "requestState": parked["requestState"]}
                result = (await wire.ask("tools/call", {**ask, **state}))["result"]
            assert result["content"][0]["said"] == {"action": "decline"}

    asyncio.run(go())
    begun = [e for _, e in entries(workspace.parent / "log") if e and e["event"] == "begin"]
    assert {layer["status"] for e in begun for layer in e["enforcement"].values()} == {"none"}
    assert "token-of-the-gateway" not in (workspace.parent / "log").read_text()


def test_a_wrong_token_is_said_and_not_shown(workspace: Path, raw_client: Any) -> None:
    async def go() -> None:
        headers = {"Authorization": "Bearer wrong-one"}
        async with far() as url, through(raw_client, workspace, url=url, headers=headers) as wire:
            answer = await wire.initialize()
            assert "A bearer token is needed" in answer["error"]["message"]
            assert "wrong-one" not in str(wire.received)

    asyncio.run(go())


def test_a_profile_decides_where_its_server_may_be(
    workspace: Path, raw_client: Any, tmp_path: Path
) -> None:
    def profile(allow: str) -> str:
        path = tmp_path / "remote.yaml"
        path.write_text(
            f"name: remote\nextends: mcp-server\nnetwork: {{isolated: false, allow: [{allow}]}}\n"
        )
        return str(path)

    async def go() -> None:
        headers = {"Authorization": "Bearer token-of-the-gateway"}
        async with far() as url:
            port = int(url.rpartition(":")[2].removesuffix("/mcp"))
            name = f"http://localhost:{port}/mcp"
            for asked, allow, said in (
                (url, f"{{host: 127.0.0.1, ports: [{port}]}}", ""),
                (url, "{host: 127.0.0.1, ports: [9]}", "port"),
                (url, "{host: example.org}", "not in the policy"),
                # A name that leads to a private address is refused unless the rule says so.
                (name, f"{{host: localhost, ports: [{port}]}}", "address"),
                (name, f"{{host: localhost, ports: [{port}], addresses: [127.0.0.0/8]}}", ""),
            ):  # fmt: skip
                fields: dict[str, Any] = {
                    "url": asked,
                    "headers": headers,
                    "profile": profile(allow),
                }
                async with through(raw_client, workspace, **fields) as wire:
                    answer = await wire.initialize()
                    if not said:
                        assert answer["result"]["serverInfo"]["name"] == "far", answer
                    else:
                        assert answer["error"]["code"] == -32050
                        assert said in answer["error"]["message"], answer

    asyncio.run(go())


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_a_redirect_takes_nothing_elsewhere(workspace: Path, raw_client: Any) -> None:
    asked: list[bytes] = []

    async def go() -> None:
        async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await head(reader))

        async with scripted(collect) as there:

            async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await head(reader)
                to = f"http://127.0.0.1:{there}/".encode()
                writer.write(
                    b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: " + to + b"\r\n\r\n"
                )
                await writer.drain()

            async with scripted(redirect) as here:
                url, headers = f"http://127.0.0.1:{here}/", {"Authorization": "Bearer secret"}
                async with through(raw_client, workspace, url=url, headers=headers) as wire:
                    assert "HTTP 307" in (await wire.initialize())["error"]["message"]

    asyncio.run(go())
    assert asked == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_transport_before_streamable_http_posts_within_its_origin_only(
    elsewhere: bool, workspace: Path, raw_client: Any
) -> None:
    posted: list[bytes] = []
    stream: list[asyncio.StreamWriter] = []

    async def go() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await head(reader)
            if request.startswith(b"GET"):
                where = b"http://127.0.0.1:9/post" if elsewhere else b"/post?s=1"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                writer.write(b"event: endpoint\r\ndata: " + where + b"\r\n\r\n")
                stream.append(writer)
                await writer.drain()
                await reader.read()
                return
            length = int(request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            posted.append(request.split(b"\r\n")[0])
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            if b'"initialize"' in body:
                answer = (
                    b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2024-11-05",'
                    b'"capabilities":{},"serverInfo":{"name":"old","version":"1"}}}'
                )
                stream[0].write(b"event: message\ndata: " + answer + b"\n\n")
            await writer.drain()

        async with scripted(serve) as port:
            url = f"http://127.0.0.1:{port}/sse"
            async with through(raw_client, workspace, url=url, kind="sse") as wire:
                answer = await wire.initialize()
        if elsewhere:
            assert "another origin" in answer["error"]["message"]
            assert posted == []
        else:
            assert answer["result"]["serverInfo"]["name"] == "old"
            assert posted[0] == b"POST /post?s=1 HTTP/1.1"

    asyncio.run(go())


def test_urls_in_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "servers.yaml"

    def load(fields: str) -> Any:
        file.write_text(f"mcpServers: {{a: {{{fields}}}}}")
        return load_servers(file, {"T": "s3cret"})[0]

    spec = load('url: "https://a.example/mcp", headers: {Authorization: "Bearer ${T}"}')
    assert (spec.url, spec.kind, spec.profile) == ("https://a.example/mcp", "http", "")
    assert spec.headers == {"Authorization": "Bearer s3cret"}
    assert "s3cret" not in repr(spec)
    assert load('type: sse, url: "https://a.example/sse"').kind == "sse"
    for wrong, said in (
        ('url: "https://a.example", command: x', "command"),
        ('url: "https://a.example", type: websocket', "type"),
        ('url: "https://a.example", headers: {Host: b}', "headers.Host"),
        ('url: "https://a.example", headers: {Mcp-Session-Id: b}', "headers.Mcp-Session-Id"),
        ('url: "https://a.example", headers: {X: "a\\r\\nY: b"}', "headers.X"),
        ('url: "https://a.example", headers: {X: "${NONE}"}', "NONE"),
    ):
        with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
            load(wrong)
    for url in ("ftp://a.example/", "https://user:pw@a.example/", "https:///x"):
        with pytest.raises(ConfigError, match=r"mcpServers\.a\.url"):
            load(f'url: "{url}"')
