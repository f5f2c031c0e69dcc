"""`purple wrap --url`: one server that is reached by a URL, as `purple import` writes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.server import Listen, serve_http
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.integrations.clients.entries import VARIABLE, wrapped
from purplebox.integrations.clients.known import CLIENTS

WRAP = [sys.executable, "-m", "purplebox.gateway.cli", "wrap"]


def test_an_imported_server_works_as_before(workspace: Path, private_home: Path) -> None:
    (workspace / "file").write_text("far away")

    async def go() -> Any:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        listen = Listen(host="127.0.0.1", port=0, tokens={"purple": "a-token"})
        async with Gateway(workspace=workspace, audit_log=workspace.parent / "far") as far:
            serving = serve_http(lambda _: Single(BuiltIns(far)), listen, port.set_result)
            task = asyncio.create_task(serving)
            try:
                headers = {"Authorization": "Bearer a-token"}
                url = f"http://127.0.0.1:{await port}/mcp"
                entry = {"type": "http", "url": url, "headers": headers}
                taken = wrapped(CLIENTS["claude-code"], "user", entry, "mcp-server")
                assert taken is not None
                assert taken["args"][0] == "wrap"
                parameters = StdioServerParameters(
                    command=WRAP[0], args=[*WRAP[1:], *taken["args"][1:]],
                    env={**os.environ, **taken["env"]},
                )  # fmt: skip
                async with Client(parameters) as client:
                    return await client.call_tool("read_file", {"path": "file"})
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    result = asyncio.run(go())
    assert result.content[0].text == "far away"
    log = next(private_home.rglob("audit.log*"), None) or next(private_home.rglob("*.jsonl"))
    begun = [e for _, e in entries(log) if e and e["event"] == "begin"]
    assert [(e["tool"], e["server"]) for e in begun] == [("read_file", "127.0.0.1")]
    assert "a-token" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "variable", "words"),
    [
        (["--url", "ftp://a"], None, "is no http or https URL"),
        (["--url", "http://a/mcp", "--", "true"], None, "a URL or a command, not both"),
        (["--url-from", VARIABLE], None, "there is no such variable"),
        (["--url-from", VARIABLE], "[]", "not what `purple import` writes"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], variable: str | None, words: str) -> None:
    env = {**os.environ, **({VARIABLE: variable} if variable is not None else {})}
    run = subprocess.run(
        [*WRAP, *arguments], capture_output=True, text=True, check=False, env=env,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (run.returncode, words in run.stderr) == (2, True), run.stderr
