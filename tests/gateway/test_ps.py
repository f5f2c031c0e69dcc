"""`purple ps`: what runs, how it fares, and who may ask."""

from __future__ import annotations

import asyncio
import json
import os
import sys
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
