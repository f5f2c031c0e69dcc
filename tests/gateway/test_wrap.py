"""`purple wrap`: an existing server behind the command, in a real sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    workspace: Path, raw_client: Any
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
    run = subprocess.run(
        [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-p", str(rules), "-w",
         str(workspace), "--", os.path.realpath(sys.executable), "fake.py", "legacy"],
        input="".join(json.dumps({"jsonrpc": "2.0", **m}) + "\n" for m in messages),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    answers = {m.get("id"): m for m in map(json.loads, run.stdout.splitlines())}
    assert len(answers) == 4, run.stdout  # and nothing else: one server was started
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
