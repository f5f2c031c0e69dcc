"""What is special where the caller's event loop is not the engine's: trio, by anyio and alone."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import anyio
import pytest

from purplebox.isolation import (
    CommandNotFound,
    Engine,
    OperationError,
    SetupError,
    SyncEngine,
)
from purplebox.policies import load_policy
from purplebox.policies.model import Network

trio = pytest.importorskip("trio", reason="trio is not installed")

pytestmark = pytest.mark.anyio
BASE = load_policy("base")
BEAT = (
    "(while :; do date +%N > beat; sleep 0.01; done) & "
    "while [ ! -s beat ]; do sleep 0.01; done; echo on; sleep 60"
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    if request.param == "trio":
        pytest.importorskip("trio", reason="trio is not installed")
    return str(request.param)


only_trio = pytest.mark.parametrize("anyio_backend", ["trio"])


def threads() -> int:
    return sum(thread.name == "purple-engine" for thread in threading.enumerate())


async def until(there: Callable[[], bool]) -> None:
    with anyio.fail_after(120):
        while not there():
            await anyio.sleep(0.01)


async def stands_still(path: Path) -> bool:
    before = path.read_text()
    await anyio.sleep(0.2)
    return path.read_text() == before


async def test_runs_and_operations(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        results: list[bytes] = []

        async def one(number: int) -> None:
            results.append((await engine.run(["echo", str(number)])).stdout)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
        assert sorted(results) == [f"{n}\n".encode() for n in range(8)]
        assert (await engine.run(["cat"], stdin=b"x" * 300_000)).stdout_bytes == 300_000
        await engine.call("write_file", {"path": "a", "content": "b"})
        assert (await engine.call("read_file", {"path": "a"})).value["content"] == "b"
        assert engine.enforcement.layers["seccomp"].status == "full"
        assert engine.program(["sh"]).endswith("sh")
        assert engine.view.sees(str(workspace / "a"))
    assert threads() == 0


async def test_errors_are_the_engines_and_their_tracebacks_show_both_sides(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        with pytest.raises(CommandNotFound) as caught:
            await engine.run(["nonesuch"])
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0].startswith("test_errors")
        assert "carry_out" in names  # where it was found out
        assert not caught.value.__suppress_context__
        with pytest.raises(OperationError) as refused:
            await engine.call("read_file", {"path": "nowhere"})
        assert refused.value.code == "ENOENT"
    with pytest.raises(SetupError, match="not a directory"):
        await Engine(BASE, workspace / "nowhere").__aenter__()
    assert threads() == 0


async def test_a_cancelled_run_goes_on_when_the_sandbox_is_gone(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await engine.run(["sh", "-c", BEAT])

            group.start_soon(run)
            await until((workspace / "beat").exists)
            before = (workspace / "beat").read_text()
            await until(lambda: (workspace / "beat").read_text() != before)  # the control
            group.cancel_scope.cancel()
        assert engine._processes == set()
        assert await stands_still(workspace / "beat")


async def test_output_comes_to_the_callers_task_in_order_and_before_the_result(
    workspace: Path,
) -> None:
    here = threading.get_ident()
    whose = contextvars.ContextVar("whose", default="nobody's")
    whose.set("the caller's")
    seen: list[tuple[str, bytes, int]] = []

    def on_output(name: str, data: bytes) -> None:
        seen.append((name, data, threading.get_ident()))

    count = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"
    async with Engine(BASE, workspace) as engine:
        result = await engine.run(["sh", "-c", count], on_output=on_output)
    assert b"".join(data for _, data, _ in seen) == result.stdout
    assert result.stdout.split() == [str(n).encode() for n in range(2000)]
    assert {thread for _, _, thread in seen} == {here}


@only_trio
async def test_a_flood_waits_for_who_looks_at_it(workspace: Path) -> None:
    seen: list[int] = []

    def slowly(_: str, data: bytes) -> None:
        seen.append(len(data))
        time.sleep(0.05)

    written = workspace / "written"
    flood = "head -c 50000000 /dev/zero; echo all > written"
    async with Engine(BASE, workspace) as engine:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await engine.run(["sh", "-c", flood], on_output=slowly)

            group.start_soon(run)
            await until(lambda: len(seen) > 0)
            await anyio.sleep(0.5)
            group.cancel_scope.cancel()
        assert not written.exists()
        await engine.run(["sh", "-c", flood], on_output=lambda name, data: None)
        assert written.exists()  # the control
        assert (await engine.run(["true"])).exit_code == 0


@only_trio
async def test_an_error_in_on_output_ends_the_run_and_is_raised(workspace: Path) -> None:
    def fail(_: str, data: bytes) -> None:
        raise ValueError(data.decode())

    async with Engine(BASE, workspace) as engine:
        with pytest.raises(ValueError, match="on"):
            await engine.run(["sh", "-c", BEAT], on_output=fail)
        assert await stands_still(workspace / "beat")
        assert (await engine.run(["true"])).exit_code == 0


async def test_an_engine_that_is_closed_while_calls_run(workspace: Path) -> None:
    said: list[str] = []
    async with Engine(BASE, workspace) as engine:
        process = await engine.start(["sleep", "60"])

        async def run() -> None:
            try:
                said.append((await engine.run(["sh", "-c", "echo > on; sleep 60"])).reason)
            except SetupError as error:
                said.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await until((workspace / "on").exists)
            for _ in range(40):  # more than are ready: some of them wait for one
                group.start_soon(run)
            await anyio.sleep(0)
            with anyio.fail_after(120):
                await engine.aclose()
    assert len(said) == 41
    assert "signaled" in said
    assert set(said) <= {
        "signaled", "the engine has been closed", "the sandbox's keeper is gone; restart purple",
    }  # fmt: skip
    assert (await process.wait()).signal == signal.SIGKILL
    process.kill()
    process.send_signal(15)
    await process.aclose()
    with pytest.raises(SetupError):
        await engine.run(["true"])
    await engine.aclose()
    assert threads() == 0


async def test_several_engines_one_in_another(workspace: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    async with Engine(BASE, workspace) as outer, Engine(BASE, second) as inner:
        async with anyio.create_task_group() as group:
            group.start_soon(outer.run, ["sh", "-c", "pwd > where"])
            group.start_soon(inner.run, ["sh", "-c", "pwd > where"])
        async with await outer.start(["cat"]) as process:
            await process.stdin.send((await inner.run(["echo", "from inner"])).stdout)
            assert await process.stdout.receive() == b"from inner\n"

        def blocking() -> bytes:
            with SyncEngine(BASE, workspace) as engine:
                return engine.run(["echo", "in a thread"]).stdout

        assert await anyio.to_thread.run_sync(blocking) == b"in a thread\n"
    for place in (workspace, second):
        assert (place / "where").read_text() == f"{place}\n"
    assert threads() == 0


async def test_the_way_out(workspace: Path) -> None:
    asked: list[str] = []

    async def resolve(name: str) -> list[IPv4Address]:
        asked.append(name)
        await anyio.sleep(0)  # on the engine's loop, whatever the caller's is
        return [IPv4Address("127.0.0.1")]

    connect = "exec 3<>/dev/tcp/{}/{} && head -c 5 <&3"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"hello")

        port = server.getsockname()[1]
        rule = {"host": "server.test", "ports": [port], "addresses": ["127.0.0.0/8"]}
        network = Network.model_validate({"isolated": False, "allow": [rule]}, strict=False)
        policy = BASE.model_copy(update={"network": network})
        async with Engine(policy, workspace, resolve=resolve) as engine:
            thread = threading.Thread(target=answer)
            thread.start()
            result = await engine.run(["bash", "-c", connect.format("server.test", port)])
            await anyio.to_thread.run_sync(thread.join)
            other = await engine.run(["bash", "-c", connect.format("other.test", port)])
    assert (result.stdout, asked) == (b"hello", ["server.test"])
    assert [found.name for found in result.connections] == ["server.test"]
    assert other.exit_code != 0
    assert b"not known" in other.stderr or b"resolution" in other.stderr


async def test_a_process_that_comes_when_its_caller_has_gone_is_ended(workspace: Path) -> None:
    async with Engine(BASE, workspace):
        pass  # what is started once for all engines is there
    before = len(os.listdir("/proc/self/fd"))
    async with Engine(BASE, workspace) as engine:
        await engine.run(["true"])
        for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
            with anyio.move_on_after(delay):
                process = await engine.start(["sleep", "60"])
                await process.aclose()
        await until(lambda: not engine._processes)
    assert len(os.listdir("/proc/self/fd")) == before


def test_trio_without_anyio(workspace: Path) -> None:
    async def main() -> bytes:
        async with Engine(BASE, workspace) as engine:
            with trio.move_on_after(0.2) as scope:
                await engine.run(["sleep", "60"])
            assert scope.cancelled_caught
            async with await engine.start(["cat"]) as process:
                await process.stdin.send(b"hello")
                return await process.stdout.receive()

    assert trio.run(main) == b"hello"
    assert threads() == 0


def test_trio_as_a_guest_of_asyncio(workspace: Path) -> None:
    async def guest() -> bytes:
        async with Engine(BASE, workspace) as engine:
            assert threads() == 1
            return (await engine.run(["echo", "guest"])).stdout

    async def host() -> bytes:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        async with Engine(BASE, workspace) as engine:
            assert (await engine.run(["echo", "host"])).stdout == b"host\n"
        outcome = await ended
        return bytes(outcome.unwrap())

    assert asyncio.run(host()) == b"guest\n"


def beating(program: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    """`program` in an interpreter of its own, with a command that beats until it is killed."""
    return subprocess.run(
        [sys.executable, "-c", program, str(workspace), BEAT],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


INTERRUPTED = """
import os, signal, sys, threading, trio
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

workspace = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

async def main():
    async with Engine(load_policy("base"), workspace) as engine:
        try:
            await engine.run(["sh", "-c", sys.argv[2]], on_output=lambda *_: os.kill(os.getpid(), signal.SIGINT))
        except KeyboardInterrupt:
            before = (workspace / "beat").read_text()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.2)
            print("still" if (workspace / "beat").read_text() == before else "beats", flush=True)
            raise

try:
    trio.run(main)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""


def test_an_interrupt_kills_what_the_main_task_waits_for(workspace: Path) -> None:
    run = beating(INTERRUPTED, workspace)
    assert (run.stdout, run.returncode) == ("still\ninterrupted 1\n", 0), run.stderr


BLOCKED = """
import os, signal, sys, threading
from pathlib import Path
from purplebox.isolation import SyncEngine
from purplebox.policies import load_policy

workspace = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
with SyncEngine(load_policy("base"), workspace) as engine:
    try:
        engine.run(["sh", "-c", sys.argv[2]], on_output=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    except KeyboardInterrupt:
        print("interrupted", engine._engine._ways._running)
    print(engine.run(["echo", "next"]).stdout)
print(threading.active_count())
"""


def test_an_interrupt_kills_what_a_thread_waits_for(workspace: Path) -> None:
    run = beating(BLOCKED, workspace)
    assert (run.stdout, run.returncode) == ("interrupted {}\nb'next\\n'\n1\n", 0), run.stderr


def test_run_with_says_where_it_works(workspace: Path) -> None:
    async def main() -> None:
        async with Engine(BASE, workspace) as engine:
            with pytest.raises(RuntimeError, match="elsewhere use start"):
                await engine.run_with(["true"], (0, 1, 2), signals=asyncio.Queue())

    trio.run(main)
