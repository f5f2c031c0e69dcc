"""`purple wrap`: an existing server behind the command, in a real sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from purplebox.gateway.audit import verify
from purplebox.gateway.audit.log import entries

FAKE = Path(__file__).parent / "fidelity" / "fake_server.py"
SERVER = """
import errno
import os
from mcp.server import MCPServer

server = MCPServer("files", instructions="Reads files.")

@server.tool()
def read(path: str) -> str:
    try:
        return open(path).read()
    except OSError as error:
        return errno.errorcode[error.errno]

@server.tool()
def write(path: str) -> str:
    try:
        return str(open(path, "w").write("x"))
    except OSError as error:
        return errno.errorcode[error.errno]

@server.tool()
def environ() -> str:
    return " ".join(sorted(os.environ))

server.run()
"""


def parameters(workspace: Path, *command: str) -> StdioServerParameters:
    profile = workspace.parent / "with-venv.yaml"
    profile.write_text(
        f"name: with-venv\nextends: mcp-server\nfilesystem: {{read: ['{sys.prefix}']}}\n"
    )
    args = [
        "-m",
        "purplebox.gateway.cli",
        "wrap",
        "-p",
        str(profile),
        "-w",
        str(workspace),
        "--env",
        "GRANTED",
        "--",
        *command,
    ]
    return StdioServerParameters(
        command=sys.executable,
        args=args,
        env={**os.environ, "SECRET_OF_A_SIBLING": "s", "GRANTED": "g"},
    )


def test_a_wrapped_server_does_its_work_and_nothing_else(
    workspace: Path, private_home: Path, tmp_path: Path
) -> None:
    (workspace / "server.py").write_text(SERVER)
    (workspace / "a.txt").write_text("hello")
    (tmp_path / "outside.txt").write_text("secret")

    async def go() -> None:
        async with Client(parameters(workspace, sys.executable, "server.py")) as client:
            assert client.server_info is not None
            assert client.server_info.name == "files"
            assert client.instructions == "Reads files."
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == ["read", "write", "environ"]

            async def call(name: str, **arguments: Any) -> tuple[bool | None, str]:
                result = await client.call_tool(name, arguments)
                return result.is_error, str(getattr(result.content[0], "text", ""))

            assert await call("read", path="a.txt") == (False, "hello")
            outside = str(tmp_path / "outside.txt")
            assert await call("read", path=outside) == (False, "ENOENT")
            assert await call("write", path="b.txt") == (False, "EROFS")
            names_inside = (await call("environ"))[1].split()
            assert "SECRET_OF_A_SIBLING" not in names_inside
            assert "GRANTED" in names_inside

    asyncio.run(go())
    log = private_home / "state" / "purple" / "audit.jsonl"
    report = verify(log)
    assert (report.calls, report.interrupted, report.problems) == (4, (), ())
    begun = [e for _, e in entries(log) if e and e["event"] == "begin"]
    assert {e["policy"] for e in begun} == {"with-venv"}
    assert [e["tool"] for e in begun] == ["read", "read", "write", "environ"]


def test_rules_of_the_profile_decide_calls_of_the_wrapped_server(
    workspace: Path, converse: Callable[..., list[dict[str, Any]]]
) -> None:
    rules = workspace.parent / "ruled.yaml"
    rules.write_text(
        "name: ruled\nextends: mcp-server\ntools: {rules: [{tool: echo, when: 'args.a == 1', "
        "effect: deny, reason: not one}, {tool: resources/read, effect: deny, reason: never}]}\n"
    )
    messages = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
         "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}},
        {"id": 2, "method": "tools/call", "params": {"name": "echo", "arguments": {"a": 1}}},
        {"id": 3, "method": "tools/call", "params": {"name": "echo", "arguments": {"a": 2}}},
        {"id": 4, "method": "resources/read", "params": {"uri": "x:y"}},
    ]  # fmt: skip
    (workspace / "fake.py").write_text(FAKE.read_text())
    received = converse(
        [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-p", str(rules), "-w",
         str(workspace), "--", os.path.realpath(sys.executable), "fake.py", "legacy"],
        messages,
    )  # fmt: skip
    answers = {message.get("id"): message for message in received}
    assert len(answers) == 4, received  # and nothing else: one server was started
    assert answers[2]["result"]["isError"] is True
    assert "not one" in answers[2]["result"]["content"][0]["text"]
    assert answers[3]["result"]["structuredContent"] == {"a": 2}
    assert answers[4]["error"]["data"]["reason"] == "policy_denied"


def test_a_command_that_is_not_there_is_said_before_any_client(workspace: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-w", str(workspace), "--", "nonesuch"],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 127
    assert "nonesuch" in run.stderr


def test_a_cold_cache_is_said_with_what_fills_it(workspace: Path, private_home: Path) -> None:
    wrap = [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-w", str(workspace)]
    for profile, command, fill in (
        ("mcp-server-uvx", ["uvx", "p"], "uvx p --help"),
        ("mcp-server-npx", ["npx", "-y", "p"], "npx -y p </dev/null"),
    ):
        run = subprocess.run(
            [*wrap, "-p", profile, "--", *command],
            env={**os.environ, "HOME": str(private_home)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert run.returncode == 125
        assert f"does not exist; create it or remove the grant; fill the cache first, outside: {fill}\n" in run.stderr  # fmt: skip


def test_references_in_the_environment_are_read_and_what_they_stand_for_is_covered(
    workspace: Path, private_home: Path
) -> None:
    server = SERVER.replace(
        "server.run()",
        "@server.tool()\ndef value(name: str) -> str:\n    return os.environ[name]\n\nserver.run()",
    )
    (workspace / "server.py").write_text(server)
    (workspace.parent / "key").write_text("from-a-file-8f2c1\n")
    given = parameters(workspace, sys.executable, "server.py")
    extra = ["--env", f"FROM_FILE=${{file:{workspace.parent / 'key'}}}",
             "--env", "FROM_COMMAND=Bearer ${command:printf %s from-a-command-77aa}",
             "--env", "FROM_SECRET", "--env", "PLAIN=a=b"]  # fmt: skip
    at = given.args.index("--env")
    given.args[at:at] = extra
    assert given.env is not None
    given.env["FROM_SECRET"] = "${secret:ELSEWHERE}"
    given.env["ELSEWHERE"] = "from-a-variable-41d0"

    async def go() -> None:
        async with Client(given) as client:

            async def value(name: str) -> str:
                result = await client.call_tool("value", {"name": name})
                return str(getattr(result.content[0], "text", ""))

            assert await value("PLAIN") == "a=b"
            assert await value("FROM_COMMAND") == "Bearer [redacted]"
            for name in ("FROM_FILE", "FROM_SECRET"):
                assert await value(name) == "[redacted]", name
            inside = await client.call_tool("environ", {})
            names = str(getattr(inside.content[0], "text", "")).split()
            assert {"FROM_FILE", "FROM_COMMAND", "FROM_SECRET", "PLAIN"} <= set(names)
            assert "ELSEWHERE" not in names

    asyncio.run(go())


def test_nonsense_in_options_is_said_before_anything_runs(workspace: Path) -> None:
    def said(*options: str) -> tuple[int, str]:
        run = subprocess.run(
            [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-w", str(workspace), *options,
             "--", "true"],
            capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return run.returncode, run.stderr

    for rate in ("0", "-1", "1.5", "many", "9" * 40, "٣٣"):
        code, text = said("--frame-rate", rate)
        assert code == 2 and "is no whole number of frames a second from 10 to 1000000" in text
    code, text = said("--env", "KEY=${file:/nowhere/at/all}")
    assert (code, "--env KEY: /nowhere/at/all: No such file" in text) == (2, True), text
    code, text = said("--env", "=x")
    assert (code, "write NAME or NAME=VALUE" in text) == (2, True), text


def test_a_client_that_sends_faster_than_the_rate_set_is_told_so(
    workspace: Path, converse: Callable[..., list[dict[str, Any]]]
) -> None:
    (workspace / "fake.py").write_text(FAKE.read_text())
    hello = {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
             "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
    pings = [{"id": n, "method": "ping"} for n in range(2, 502)]

    def refused(*options: str) -> int:
        answers = converse(
            [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-w", str(workspace), *options,
             "--", os.path.realpath(sys.executable), "fake.py", "legacy"],
            (hello, *pings),
        )  # fmt: skip
        assert len(answers) == 501
        return sum(a.get("error", {}).get("code") == -32053 for a in answers)

    assert refused() == 0
    assert refused("--frame-rate", "50") > 0


REACHER = """
import json, os, socket, sys, time
from urllib.parse import urlsplit
for line in sys.stdin:
    message = json.loads(line)
    params = message.get("params", {})
    result = {"tools": [{"name": "reach", "inputSchema": {"type": "object"}}]}
    if message["method"] == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "reacher", "version": "1"}}
    elif message["method"] == "tools/call":
        place = urlsplit(os.environ["HTTP_PROXY"])
        with socket.create_connection((place.hostname, place.port)) as gate:
            where = "127.0.0.1:%d" % params["arguments"]["port"]
            gate.sendall(f"CONNECT {where} HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n".encode())
            text = gate.recv(4096).split()[1].decode()
        result = {"content": [{"type": "text", "text": text}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
time.sleep(float(sys.argv[1]))  # it does not end with its stdin
"""


@pytest.mark.parametrize("lingers", ["0", "600"])
def test_what_a_server_connects_to_is_in_a_record_of_its_life(
    workspace: Path, private_home: Path, lingers: str, converse: Callable[..., list[dict[str, Any]]]
) -> None:
    """It ends with its client, by itself or not."""
    (workspace / "server.py").write_text(REACHER)
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        port, other = there.getsockname()[1], elsewhere.getsockname()[1]
        profile = workspace.parent / "reaching.yaml"
        profile.write_text(
            "name: reaching\nextends: mcp-server\n"
            f"network: {{isolated: false, allow: [{{host: 127.0.0.1, ports: [{port}]}}]}}\n"
        )
        messages: list[dict[str, Any]] = [
            {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
             "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}},
            *({"id": p, "method": "tools/call", "params": {"name": "reach", "arguments": {"port": p}}}
              for p in (port, other)),
        ]  # fmt: skip
        threading.Thread(target=lambda: there.accept()[0].close()).start()
        received = converse(
            [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-p", str(profile), "-w",
             str(workspace), "--", "/usr/bin/python3", "server.py", lingers],
            messages,
        )  # fmt: skip
    texts = {m["id"]: m["result"]["content"][0]["text"] for m in received if m.get("id", 1) != 1}
    assert texts == {port: "200", other: "403"}
    log = private_home / "state" / "purple" / "audit.jsonl"
    assert verify(log).problems == () and verify(log).interrupted == ()
    written = [entry for _, entry in entries(log) if entry]
    (begun,) = [e for e in written if e["event"] == "begin" and e["tool"] == "server"]
    assert (begun["server"], begun["policy"]) == ("python3", "reaching")
    (ended,) = [e for e in written if e["event"] == "end" and e["call_id"] == begun["call_id"]]
    made = {c["port"]: (c["rule"], c.get("reason", "")) for c in ended["connections"]}
    assert made[port] == ("network.allow[0]", "")
    assert made[other][1] == "port_not_allowed"
