"""The protocol's conformance suite, against a server directly and through the gateway."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.audit import verify

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
FIXTURE = Path(__file__).with_name("fixture_server.py")
# What `purple wrap --http` runs, but that a stream ends so early that the suite sees it resumed.
WRAP = """
import asyncio, sys
from pathlib import Path
from purplebox.gateway.server import Listen, serve_wrapped
from purplebox.policies import load_policy
listen = Listen(host="127.0.0.1", port=int(sys.argv[1]), stream_seconds=0.2)
workspace = Path(sys.argv[3])
policy = load_policy(sys.argv[2], project=workspace)
asyncio.run(serve_wrapped(policy, workspace, sys.argv[4:], http=listen))
"""

# The same for a server that is reached by URL.
REACH = """
import asyncio, sys
from pathlib import Path
from purplebox import Gateway
from purplebox.gateway.calls import Version
from purplebox.gateway.config import ServerSpec
from purplebox.gateway.elsewhere import Elsewhere, connector_to, policy_for
from purplebox.gateway.server import Listen, serve_http
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.upstream import Upstream
from purplebox.isolation.egress.dial import SystemResolver
async def main():
    spec = ServerSpec(name="far", profile="", url=sys.argv[2])
    listen = Listen(host="127.0.0.1", port=int(sys.argv[1]), stream_seconds=0.2)
    own = policy_for(spec, Path(sys.argv[3]))
    async with Gateway("mcp-server", sys.argv[3]) as gateway, Elsewhere(own, None) as engine:
        version, resolver = Version(policy=own, engine=engine), SystemResolver()
        def single(session):
            connector = connector_to(spec, own, resolver)
            return Single(Upstream("far", connector, session, gateway.calls, version))
        await serve_http(single, listen)
asyncio.run(main())
"""


@contextlib.contextmanager
def running(log: Path, *command: Any) -> Generator[int]:
    """A server on a free port, `PORT` in its command."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    words = [str(port) if word == "PORT" else str(word) for word in command]
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(120)


Checks = dict[tuple[str, str, str], list[str]]


def checked(commands: Path, env: dict[str, str], port: int, version: str, results: Path) -> Checks:
    """How each check of the suite came out, all that are not mere information."""
    run = subprocess.run(
        [commands / "conformance", "server", "--url", f"http://127.0.0.1:{port}/mcp", "--suite", "all",
         "--spec-version", version, "-o", results],
        capture_output=True, text=True, env=env, check=False, timeout=600,
    )  # fmt: skip
    found: Checks = {}
    for file in sorted(results.glob("*/checks.json")):
        scenario = re.sub(r"-20\d\d-\d\d-.*", "", file.parent.name)
        for check in json.loads(file.read_text()):
            if check["status"] != "INFO":
                key = (scenario, check["id"], check["name"])
                found.setdefault(key, []).append(check["status"])
    assert found, run.stdout + run.stderr
    return found


@pytest.mark.slow
def test_the_same_checks_pass_directly_and_through_the_gateway(
    npm_install: Callable[..., Path],
    with_node: dict[str, str],
    workspace: Path,
    tmp_path: Path,
    private_home: Path,
) -> None:
    suite = npm_install(SUITE)
    (workspace / "server.py").write_text(FIXTURE.read_text())
    profile = tmp_path / "fixture.yaml"
    profile.write_text(
        f"name: fixture\nextends: mcp-server\nfilesystem: {{read: ['{sys.prefix}']}}\n"
    )
    direct = (sys.executable, FIXTURE, "PORT")
    wrapped = (sys.executable, "-c", WRAP, "PORT", profile, workspace, sys.executable, "server.py")
    found: dict[tuple[str, str], Checks] = {}
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(running(tmp_path / "direct.log", *direct))
        behind = stack.enter_context(running(tmp_path / "wrapped.log", *wrapped))
        reach = (sys.executable, "-c", REACH, "PORT", f"http://127.0.0.1:{far}/mcp", workspace)
        reached = stack.enter_context(running(tmp_path / "reached.log", *reach))
        for name, port in (("direct", far), ("wrapped", behind), ("reached", reached)):
            for version in ("2025-11-25", "2026-07-28"):
                found[name, version] = checked(
                    suite, with_node, port, version, tmp_path / f"{name}-{version}"
                )
    for version, least in (("2025-11-25", 80), ("2026-07-28", 150)):
        alone = found["direct", version]
        assert found["wrapped", version] == alone
        assert found["reached", version] == alone
        assert {status for all in alone.values() for status in all} == {"SUCCESS"}
        assert sum(map(len, alone.values())) >= least
    report = verify(private_home / "state" / "purple" / "audit.jsonl")
    assert report.calls > 50
    assert report.problems == ()
