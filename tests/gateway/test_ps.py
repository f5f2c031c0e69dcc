"""`purple ps`: what runs, how it fares, and who may ask."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from purplebox.gateway.cli import main

SERVER = """
import os
from mcp.server import MCPServer
server = MCPServer("s")

@server.tool()
def die() -> str:
    os._exit(3)

@server.tool()
def live() -> str:
    return "alive"

server.run()
"""


def test_ps_shows_what_runs_in_the_background(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    args = ["-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)]
    parameters = StdioServerParameters(command=sys.executable, args=args, env=dict(os.environ))

    def ps(*words: str) -> str:
        assert main(["ps", *words]) == 0
        said: str = capsys.readouterr().out
        return said

    async def go() -> None:
        async with Client(parameters) as client:
            asked = {"command": "echo on;\n sleep 60", "wait_seconds": 60}
            started = (await client.call_tool("process_start", asked)).structured_content
            assert started is not None
            id = started["process_id"]
            (one,) = json.loads(await asyncio.to_thread(ps, "--json"))["processes"]
            assert (one["process_id"], one["command"], one["running"]) == (
                id,
                asked["command"],
                True,
            )
            assert one["policy"] == "code-assistant"
            assert abs(one["since"] + one["wall_seconds"] - time.time()) < 3600
            (line,) = [line for line in (await asyncio.to_thread(ps)).splitlines() if id in line]
            assert " running " in line and line.endswith(", code-assistant: echo on; sleep 60")
            await client.call_tool("process_stop", {"process_id": id, "force": True})
            assert json.loads(await asyncio.to_thread(ps, "--json"))["processes"] == []

    asyncio.run(go())


def test_ps_shows_each_server_and_why_one_has_ended(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (workspace / "server.py").write_text(SERVER)
    profile = tmp_path / "p.yaml"
    profile.write_text(f"name: p\nextends: mcp-server\nfilesystem: {{read: ['{sys.prefix}']}}\n")
    args = ["-m", "purplebox.gateway.cli", "wrap", "-p", str(profile), "-w", str(workspace), "--",
            sys.executable, "server.py"]  # fmt: skip
    parameters = StdioServerParameters(command=sys.executable, args=args, env=dict(os.environ))

    def ps(*words: str) -> tuple[int, str]:
        status = main(["ps", *words])
        return status, capsys.readouterr().out

    assert ps() == (0, "no gateway is running\n")

    async def go() -> None:
        async with Client(parameters) as client:
            await client.call_tool("live", {})
            status, shown = await asyncio.to_thread(ps, "--json")
            found = json.loads(shown)
            server = found["servers"][0]
            assert status == 0
            assert found["gateway"].startswith("wrap, ")
            assert (server["state"], server["restarts"], server["last_error"]) == ("running", 0, "")
            assert server["requests"] >= 1
            with pytest.raises(Exception, match="has ended: exit status 3"):
                await client.call_tool("die", {})
            status, shown = await asyncio.to_thread(ps)
            assert status == 1
            assert "waiting" in shown
            assert "exit status 3" in shown
            await client.call_tool("live", {})
            status, shown = await asyncio.to_thread(ps, "--json")
            server = json.loads(shown)["servers"][0]
            assert (status, server["state"], server["restarts"]) == (0, "running", 1)

    asyncio.run(go())
    assert ps() == (0, "no gateway is running\n")
