# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What broke other gateways (lessons.toml), where no other test is about it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import resource
import sys
import tomllib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from purplebox import Gateway
from purplebox.gateway.server import Listen, serve_http
from purplebox.gateway.wire.aggregate import Many
from purplebox.gateway.wire.process import Launcher
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.upstream import Upstream
from purplebox.policies import Policy, load_policy

HERE = Path(__file__).parent
NUMBERS = {
    40,
    42,
    43,
    44,
    45,
}  # 41: tests/gateway/screens; 35-39 and 46: policies, approvals, audit

# Answers as it is told to; what it is sent is told back.
SERVER = """
import json, os, sys, threading
tools = json.loads(sys.argv[1]) if len(sys.argv) > 1 else []
waiting = {}
def send(**message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + chr(10))
    sys.stdout.flush()
for line in sys.stdin:
    message = json.loads(line)
    method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method is None:
        answer = message.get("result", message.get("error"))
        send(id=waiting.pop(id), result={"content": [{"type": "text", "text": json.dumps(answer)}]})
    elif method == "initialize":
        send(id=id, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}, "logging": {}},
                            "serverInfo": {"name": "s", "version": "1"}})
    elif method == "tools/list":
        send(id=id, result={"tools": tools})
    elif method == "tools/call" and params["name"] == "ask":
        waiting["q"] = id
        send(id="q", method=params["arguments"]["method"], params=params["arguments"]["params"])
    elif method == "tools/call" and params["name"] == "hold":
        token = params.get("_meta", {}).get("progressToken")
        send(method="notifications/progress", params={"progressToken": token, "progress": os.getpid()})
        send(method="notifications/message", params={"level": "error", "data": os.getpid()})
        held = id
    elif method == "tools/call" and params["name"] == "release":
        send(id=held, result={"content": [{"type": "text", "text": str(os.getpid())}]})
        send(id=id, result={"content": []})
    elif method == "tools/call" and params["name"] == "flood":
        def errors():
            for _ in range(200):
                os.write(2, b"y" * 1000000 + b"\\n" * 100)
        threading.Thread(target=errors, daemon=True).start()
        os.write(1, b'{"jsonrpc":"2.0","id":%d,"result":{"x":"' % id)
        for _ in range(100):
            os.write(1, b"x" * 1000000)
        os.write(1, b'"}}' + bytes([10]))
    elif id is not None:
        send(id=id, result={"content": [{"type": "text", "text": line}]})
"""


def unconfined(*argv: str) -> Any:
    async def launch(fds: tuple[int, int, int]) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, *argv, stdin=fds[0], stdout=fds[1], stderr=fds[2]
        )
        try:
            return f"exit status {await process.wait()}"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    return launch


@contextlib.asynccontextmanager
async def gateway_of(workspace: Path, policy: Policy | str = "mcp-server") -> AsyncGenerator[Any]:
    async with Gateway(policy, workspace, audit_log=workspace.parent / "log") as gateway:

        def upstream(session: Session, name: str = "s", *argv: str) -> Upstream:
            launcher = Launcher(name, unconfined(*argv))
            return Upstream(name, launcher, session, gateway.calls, gateway.version)

        yield upstream


def called(answer: Any) -> Any:
    return answer["result"]["content"][0]["text"]


def test_every_lesson_has_tests_and_they_exist() -> None:
    manifest = tomllib.loads((HERE / "lessons.toml").read_text())
    assert {int(number) for number in manifest} == NUMBERS
    for said in manifest.values():
        assert said["tests"]
        for name in said["tests"]:
            file, _, function = name.partition("::")
            tree = ast.parse((HERE / file).read_text())
            assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name
    named = {n.partition("::")[2] for said in manifest.values() for n in said["tests"]}
    own = {name for name in globals() if name.startswith("test_")} - {
        test_every_lesson_has_tests_and_they_exist.__name__
    }
    assert own <= named


def test_schemas_that_are_huge_deep_or_elsewhere_are_left_out_of_one_server_too(
    raw_client: Any, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deep: Any = {"type": "object"}
    for _ in range(70):
        deep = {"properties": {"a": deep}}
    schemas: dict[str, Any] = {
        "plain": {"type": "object"}, "near": {"$ref": "#/$defs/x"}, "deep": deep,
        "far": {"anyOf": [{"$ref": "https://e.test/s"}]}, "dynamic": {"$dynamicRef": "//e.test/s"},
        "file": {"$ref": "file:/etc/passwd"}, "huge": {"description": "x" * (1 << 19)},
    }  # fmt: skip
    tools = json.dumps([{"name": name, "inputSchema": schema} for name, schema in schemas.items()])

    def from_file(upstream: Any) -> Any:
        """Its server would not take so long a command line."""
        answers = upstream.ask

        async def ask(exchange: Any, method: str, params: Any) -> Any:
            if method == "tools/list":
                return {"tools": json.loads(tools)}
            return await answers(exchange, method, params)

        upstream.ask = ask
        return upstream

    async def go() -> None:
        async with (
            gateway_of(workspace) as upstream,
            raw_client(lambda s: Single(from_file(upstream(s)))) as wire,
        ):
            await wire.initialize()
            listed = (await wire.ask("tools/list"))["result"]["tools"]
            assert [t["name"] for t in listed] == ["plain", "near"]

    asyncio.run(go())
    said = capfd.readouterr().err
    assert said.count("refers to the network") == 3
    assert "over 256 KiB" in said and "nested deeper than 64" in said


def test_what_has_two_readings_never_reaches_a_server(raw_client: Any, workspace: Path) -> None:
    base = load_policy("mcp-server").model_dump(by_alias=True)
    rule = {"tool": "run", "when": 'args.command == "bad"', "effect": "deny", "reason": "no"}
    policy = Policy.model_validate({**base, "name": "ruled", "tools": {"rules": (rule,)}})

    async def go() -> None:
        async with (
            gateway_of(workspace, policy) as upstream,
            raw_client(lambda s: Single(upstream(s))) as wire,
        ):
            await wire.initialize()

            async def call(id: int, arguments: str) -> Any:
                wire.send(
                    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"run",'
                    b'"arguments":%s}}' % (id, arguments.encode())
                )
                return await wire.answer(id)

            assert "isError" in (await call(1, '{"command":"bad"}'))["result"]
            for id, text in enumerate(
                ('{"command":"good","command":"bad"}', '{"command":"good","Command":"bad"}',
                 '{"a":[{"x":1,"X":2}]}'), start=2,
            ):  # fmt: skip
                assert (await call(id, text))["error"]["code"] == -32600
            got = json.loads(called(await call(9, '{"command":"good"}')))
            assert got["params"]["arguments"] == {"command": "good"}
            assert got["id"] == 2  # the first that it has been sent, after initialize

    asyncio.run(go())


def test_two_clients_with_equal_ids_and_tokens_hear_only_their_own(
    raw_client: Any, workspace: Path
) -> None:
    async def go() -> None:
        async with gateway_of(workspace) as upstream, contextlib.AsyncExitStack() as stack:

            def serve(session: Session) -> Single:
                return Single(upstream(session))

            wires = [await stack.enter_async_context(raw_client(serve)) for _ in range(2)]
            for wire in wires:
                await wire.initialize()
                params = {"name": "hold", "arguments": {}, "_meta": {"progressToken": "same"}}
                wire.send({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params})
                await wire.until(lambda m: m.get("method") == "notifications/message")
            pids: list[Any] = []
            for wire in wires:
                told = [m["params"] for m in wire.received if "method" in m]
                assert {t.get("progressToken", "same") for t in told} == {"same"}
                (pid,) = {t.get("progress", t.get("data")) for t in told}
                pids.append(pid)
            assert pids[0] != pids[1]  # a server each
            # The first cancels what both call 7.
            cancel = {"requestId": 7}
            wires[0].send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel})
            await wires[0].ask("tools/call", {"name": "other", "arguments": {}})
            await wires[1].ask("tools/call", {"name": "release", "arguments": {}})
            assert called(await wires[1].answer(7)) == str(pids[1])
            assert not [m for m in wires[0].received if m.get("id") == 7]

    asyncio.run(go())


def test_a_clients_token_stays_at_the_gateway(workspace: Path) -> None:
    async def go() -> None:
        seen: list[dict[str, str]] = []

        async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            seen.append(dict(h.split(": ", 1) for h in head.strip().split("\r\n")[1:]))
            writer.write(b"HTTP/1.1 500 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        from purplebox.gateway.config import ServerSpec
        from purplebox.gateway.elsewhere import connector_to, policy_for
        from purplebox.isolation.egress.dial import SystemResolver

        server = await asyncio.start_server(far, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        spec = ServerSpec(name="far", url=url, profile="", headers={"X-Own": "of-the-gateway"})
        resolver = SystemResolver()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        async with (
            server,
            Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as g,
        ):

            def handler(session: Session) -> Single:
                connector = connector_to(spec, policy_for(spec, workspace), resolver)
                return Single(Upstream("far", connector, session, g.calls, g.version))

            listen = Listen(host="127.0.0.1", port=0, tokens={"me": "token-of-the-client"})
            task = asyncio.create_task(serve_http(handler, listen, port.set_result))
            async with httpx2.AsyncClient() as http:
                await http.post(
                    f"http://127.0.0.1:{await port}/mcp",
                    headers={"authorization": "Bearer token-of-the-client", "cookie": "c=1",
                             "x-any": "of-the-client", "content-type": "application/json",
                             "accept": "application/json, text/event-stream"},
                    json={"jsonrpc": "2.0", "id": 1, "method": "initialize",
                          "params": {"protocolVersion": "2025-11-25", "capabilities": {}}},
                )  # fmt: skip
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        resolver.close()
        assert seen[0]["x-own"] == "of-the-gateway"  # the control: headers do arrive
        for headers in seen:
            assert not {"authorization", "cookie", "x-any"} & headers.keys()
            assert "of-the-client" not in str(headers)

    asyncio.run(go())


def test_what_a_server_asks_of_the_person_is_limited_by_the_policy(
    raw_client: Any, workspace: Path
) -> None:
    base = load_policy("mcp-server").model_dump(by_alias=True)
    rules = [
        {"tool": "elicitation/create", "when": 'args.message.matches("(?i)password")',
         "effect": "deny", "reason": "no passwords"},
        {"tool": "elicitation/create", "when": 'urls.exists(u, !u.host.endsWith("good.example"))',
         "effect": "deny", "reason": "foreign page"},
        {"tool": "sampling/createMessage", "when": "args.maxTokens > 100", "effect": "deny",
         "reason": "too much"},
    ]  # fmt: skip
    policy = Policy.model_validate({**base, "name": "ruled", "tools": {"rules": tuple(rules)}})
    form: Any = {"requestedSchema": {"type": "object", "properties": {}}}
    page = {"mode": "url", "elicitationId": "1", "message": "sign in"}
    asked: list[tuple[str, Any, bool]] = [
        ("elicitation/create", {"message": "Your name?", **form}, True),
        ("elicitation/create", {"message": "Your PassWord?", **form}, False),
        ("elicitation/create", {**page, "url": "https://login.good.example/x"}, True),
        ("elicitation/create", {**page, "url": "https://good.example.evil.test/x"}, False),
        ("sampling/createMessage", {"messages": [], "maxTokens": 100}, True),
        ("sampling/createMessage", {"messages": [], "maxTokens": 101}, False),
    ]

    async def go() -> None:
        async with (
            gateway_of(workspace, policy) as upstream,
            raw_client(lambda s: Single(upstream(s))) as wire,
        ):
            await wire.initialize(elicitation={"form": {}, "url": {}}, sampling={})
            for number, (method, params, allowed) in enumerate(asked):
                arguments = {"method": method, "params": params}
                call = {"name": "ask", "arguments": arguments}
                wire.send({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call})
                if allowed:
                    shown: Any = {"method": method, "params": params}
                    question = await wire.until(lambda m, shown=shown: shown.items() <= m.items())
                    answer = {"action": "accept"}
                    wire.send({"jsonrpc": "2.0", "id": question["id"], "result": answer})
                    assert json.loads(called(await wire.answer(number))) == answer
                else:
                    refused = json.loads(called(await wire.answer(number)))
                    assert refused["data"]["reason"] == "policy_denied", refused
                    shown = [m["params"] for m in wire.received if m.get("method") == method]
                    assert params not in shown

    asyncio.run(go())


def test_a_server_that_floods_is_bounded_and_its_neighbour_answers(
    raw_client: Any, workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def go() -> None:
        async with (
            gateway_of(workspace) as upstream,
            raw_client(lambda s: Many([upstream(s, "loud"), upstream(s, "calm")])) as wire,
        ):
            await wire.initialize()
            await wire.ask("tools/list")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            flood = {"name": "loud__flood", "arguments": {}}
            wire.send({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": flood})
            for number in range(5):
                said = called(
                    await wire.ask("tools/call", {"name": "calm__x", "arguments": {"n": number}})
                )
                assert json.loads(said)["params"]["arguments"] == {"n": number}
            # 100 MB in one frame: skipped to its end, and whoever waits is told.
            answer = await wire.answer(5)
            assert "over 64 MiB" in answer["error"]["message"]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 400 << 10, f"{grown >> 10} MiB"
            assert called(await wire.ask("tools/call", {"name": "loud__x", "arguments": {}}))

    asyncio.run(go())
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[loud]")]
    assert 0 < len(lines) <= 1000
    assert all(len(line) <= 520 for line in lines)
