"""A process that runs while its caller talks with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream

from purplebox.isolation import (
    CommandNotFound,
    Engine,
    Process,
    Result,
    SyncEngine,
    SyncProcess,
)
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio

BASE = load_policy("base")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    if request.param == "trio":
        pytest.importorskip("trio", reason="trio is not installed")
    return str(request.param)


def with_resources(**limits: object) -> Policy:
    return BASE.model_copy(update={"resources": BASE.resources.model_copy(update=limits)})


async def everything(process: Process) -> bytes:
    return b"".join([data async for data in process.stdout])


def descriptors() -> int:
    """But for the counters of cgroups, which stay open for the next sandbox in one: test_waiting.py."""
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the list's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(not link.startswith("/sys/fs/cgroup/") for link in found)


async def settled(engine: Engine) -> None:
    """Returns when as many sandboxes wait as are wanted."""
    at_home = engine if engine._abroad is None else engine._abroad.engine
    with anyio.fail_after(120):
        while any(
            pool._missing() or pool._making for pool in (at_home._commands, at_home._operators)
        ):
            await anyio.sleep(0.01)


async def no_more_than(before: int) -> None:
    """Descriptors, once the pool of ready sandboxes has settled."""
    with anyio.fail_after(120):
        while descriptors() > before:
            await anyio.sleep(0.01)


async def test_a_conversation_and_its_end(workspace: Path) -> None:
    program = "while read line; do echo got $line; done; echo bye; echo no >&2; exit 7"
    async with Engine(BASE, workspace) as engine, await engine.start(["sh", "-c", program]) as sh:
        for word in (b"one", b"two"):
            await sh.stdin.send(word + b"\n")
            assert await sh.stdout.receive() == b"got " + word + b"\n"
        assert sh.result is None
        await sh.stdin.aclose()
        assert await everything(sh) == b"bye\n"
        assert await sh.stderr.receive() == b"no\n"
        result = await sh.wait()
        assert (result.exit_code, result.reason) == (7, "exited")
        assert (result.stdout, result.truncated) == (b"", False)
        assert result.usage.cpu_seconds is not None
        assert sh.result is result
        with pytest.raises(EndOfStream):
            await sh.stdout.receive()


async def test_it_holds_what_a_run_holds(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    look = f"cat {tmp_path}/key; pwd; grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status"
    async with Engine(BASE, workspace) as engine:
        ran = await engine.run(["sh", "-c", look])
        async with await engine.start(["sh", "-c", look], stdin="null", stderr="stdout") as process:
            out = (await everything(process)).decode()
            result = await process.wait()
    assert "No such file or directory" in out
    assert out.endswith(ran.stdout.decode())
    assert result.enforcement == ran.enforcement


async def test_a_flood_waits_for_its_reader(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        count = "head -c 4000000 /dev/zero; echo all > written; exec sleep 60"
        async with await engine.start(["sh", "-c", count], stdin="null") as process:
            size = len(await process.stdout.receive())
            # What it may have got rid of is what a pipe holds; the control is the rest of the test.
            assert not (workspace / "written").exists()
            while size < 4_000_000:
                size += len(await process.stdout.receive(max_bytes=1 << 20))
            with anyio.fail_after(120):
                while not (workspace / "written").exists():
                    await anyio.sleep(0.01)


async def test_a_send_waits_for_its_reader_and_breaks_without_one(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        async with await engine.start(["sleep", "60"]) as process:
            with anyio.move_on_after(0.2) as scope:
                await process.stdin.send(b"x" * 1_000_000)
            assert scope.cancelled_caught
        async with await engine.start(["sh", "-c", "exec <&-; echo; sleep 60"]) as process:
            await process.stdout.receive()
            with pytest.raises(BrokenResourceError), anyio.fail_after(120):
                while True:  # its pid 1 has the pipe for a moment, too
                    await process.stdin.send(b"x")
        async with await engine.start(["wc", "-c"]) as process:
            await process.stdin.send(b"x" * 1_000_000)
            await process.stdin.aclose()
            assert await everything(process) == b"1000000\n"


async def test_a_closed_stream_says_so_and_its_writer_gets_sigpipe(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine, await engine.start(["yes"]) as process:
        await process.stdout.receive(10)
        await process.stdout.aclose()
        await process.stdout.aclose()
        with pytest.raises(ClosedResourceError):
            await process.stdout.receive()
        assert (await process.wait()).signal == signal.SIGPIPE


async def test_one_stream_has_one_reader(workspace: Path) -> None:
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["sleep", "60"]) as process,
        anyio.create_task_group() as group,
    ):
        started = anyio.Event()

        async def read() -> None:
            started.set()
            with pytest.raises(ClosedResourceError):
                await process.stdout.receive()

        group.start_soon(read)
        await started.wait()
        await anyio.sleep(0)
        with pytest.raises(BusyResourceError):
            await process.stdout.receive()
        await process.stdout.aclose()


@pytest.mark.parametrize(
    ("number", "exit_code", "ended"), [(signal.SIGTERM, 3, None), (signal.SIGKILL, None, 9)]
)
async def test_signals(
    workspace: Path, number: int, exit_code: int | None, ended: int | None
) -> None:
    program = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["sh", "-c", program], stdin="null") as process,
    ):
        await process.stdout.receive()
        process.send_signal(number)
        result = await process.wait()
        assert (result.exit_code, result.signal) == (exit_code, ended)
        process.send_signal(number)  # nobody is there any more
        process.kill()


async def test_a_signal_at_once_is_not_lost(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        for _ in range(5):
            async with await engine.start(["sleep", "60"], stdin="null") as process:
                process.terminate()
                with anyio.fail_after(120):
                    assert (await process.wait()).signal == signal.SIGTERM


async def test_leaving_the_block_ends_all_of_it(workspace: Path) -> None:
    beat = "(while :; do date +%N > beat; echo on; sleep 0.01; done) & sleep 60"
    async with Engine(BASE, workspace) as engine:
        async with await engine.start(["sh", "-c", beat], stdin="null") as process:
            await process.stdout.receive()
        assert process.result is not None
        assert process.result.signal == signal.SIGKILL
        before = (workspace / "beat").stat().st_mtime_ns
        await anyio.sleep(0.1)
        assert (workspace / "beat").stat().st_mtime_ns == before


async def test_the_engine_ends_it(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        process = await engine.start(["sleep", "60"])
    assert process.result is not None
    assert process.result.signal == signal.SIGKILL
    await process.aclose()


async def test_limits_hold(workspace: Path) -> None:
    async with Engine(with_resources(wall_seconds=0.3), workspace) as engine:
        async with await engine.start(["sleep", "60"]) as process:
            result = await process.wait()
        assert (result.reason, result.limits[0].key) == ("timed_out", "resources.timeout")
        async with await engine.start(["sleep", "60"], wall_seconds=0.1) as process:
            result = await process.wait()
        assert result.limits[0].key == "timeout_seconds"
    async with Engine(BASE, workspace) as engine, await engine.start(["sleep", "0.4"]) as process:
        assert (await process.wait()).exit_code == 0  # the control


async def test_what_cannot_be_executed(workspace: Path) -> None:
    script = workspace / "script"
    script.write_text("#!/nonesuch\n")
    script.chmod(0o755)
    async with Engine(BASE, workspace) as engine:
        await settled(engine)
        before = descriptors()
        with pytest.raises(CommandNotFound):
            await engine.start(["nonesuch"])
        await no_more_than(before)
        async with await engine.start(["./script"]) as process:
            with pytest.raises(CommandNotFound) as caught:
                await process.wait()
        assert caught.value.code == "ENOENT"


async def test_nothing_is_left_of_many(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:

        async def one() -> None:
            async with await engine.start(["cat"]) as process:
                await process.stdin.send(b"hello")
                assert await process.stdout.receive() == b"hello"

        await one()
        await settled(engine)
        before = descriptors()
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(one)
        await no_more_than(before)
        assert engine._processes == set()


class TestCancelScopes:
    """anyio cancels again and again until the scope is left: what is to be undone still is."""

    async def test_a_run(self, workspace: Path) -> None:
        async with Engine(BASE, workspace) as engine:
            await engine.run(["true"])
            await settled(engine)
            before = descriptors()
            for _ in range(3):
                with anyio.move_on_after(0.1) as scope:
                    await engine.run(["sh", "-c", "sleep 60 & sleep 60"])
                assert scope.cancelled_caught
            assert engine._ways._running == {}
            await no_more_than(before)
            assert (await engine.run(["true"])).exit_code == 0

    async def test_an_operation(self, workspace: Path) -> None:
        os.mkfifo(workspace / "fifo")
        async with Engine(BASE, workspace) as engine:
            with anyio.move_on_after(0.3):
                await engine.call("search_text", {"pattern": "(a|a)*b", "path": "."})
            assert (await engine.call("list_directory", {})).value["entries"]

    async def test_a_process_in_its_block(self, workspace: Path) -> None:
        async with Engine(BASE, workspace) as engine:
            process: Process | None = None
            with anyio.CancelScope() as scope:
                async with await engine.start(["sleep", "60"]) as process:
                    scope.deadline = anyio.current_time() + 0.1
                    await process.wait()
            assert scope.cancelled_caught
            assert process is not None
            assert process.result is not None
            assert process.result.signal == signal.SIGKILL

    async def test_waiting_is_cancelled_and_the_process_is_not(self, workspace: Path) -> None:
        async with Engine(BASE, workspace) as engine, await engine.start(["cat"]) as process:
            with anyio.move_on_after(0.05) as scope:
                await process.wait()
            assert scope.cancelled_caught
            await process.stdin.send(b"still here")
            assert await process.stdout.receive() == b"still here"

    async def test_an_engine(self, workspace: Path) -> None:
        async with Engine(BASE, workspace):
            pass  # what is started once for all engines is there
        before = descriptors()
        with anyio.move_on_after(0.5) as scope:
            async with Engine(BASE, workspace) as engine:
                await engine.run(["sleep", "60"])
        assert scope.cancelled_caught
        assert descriptors() == before

    async def test_a_sibling_that_fails(self, workspace: Path) -> None:
        results: list[Result] = []

        async def fail(process: Process) -> None:
            await process.stdout.receive()
            raise ValueError("on purpose")

        async with Engine(BASE, workspace) as engine:
            process = await engine.start(["sh", "-c", "echo; sleep 60"])
            with pytest.raises(ExceptionGroup) as caught:
                async with process, anyio.create_task_group() as group:
                    group.start_soon(fail, process)
                    results.append(await process.wait())
            assert [str(error) for error in caught.value.exceptions] == ["on purpose"]
            assert results == []
            assert process.result is not None


def test_no_event_loop_is_told_what_to_do(workspace: Path) -> None:
    entering = Engine(BASE, workspace).__aenter__()
    with pytest.raises(RuntimeError, match="use SyncEngine"):
        entering.send(None)


def test_without_an_event_loop(workspace: Path) -> None:
    with SyncEngine(BASE, workspace) as engine:
        with engine.start(["sh", "-c", "read line; echo got $line; exit 4"]) as process:
            assert process.stdin is not None
            process.stdin.write(b"it\n")
            assert process.stdout.readline() == b"got it\n"
            assert process.wait(timeout=120).exit_code == 4
        with engine.start(["sleep", "60"], stdin="null", stderr="stdout") as process:
            assert (process.stdin, process.stderr) == (None, None)
            with pytest.raises(TimeoutError):
                process.wait(timeout=0.05)
            process.terminate()
            assert process.wait().signal == signal.SIGTERM
        left: SyncProcess = engine.start(["sleep", "60"])
    assert left.stdout.read() == b""
    left.close()
    assert left.wait().signal == signal.SIGKILL


CHILD = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        process = await engine.start(["sh", "-c", sys.argv[2]], stdin="null")
        await process.stdout.receive()
        print("on", flush=True)
        await process.wait()

asyncio.run(main())
"""


def test_nothing_outlives_a_program_that_is_killed(workspace: Path) -> None:
    beat = "(while :; do date +%N > beat; echo on; sleep 0.01; done) & exec sleep 60 >&-"
    words = [sys.executable, "-c", CHILD, str(workspace), beat + " 2>&-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"on\n"
        before = (workspace / "beat").stat().st_mtime_ns
        while (workspace / "beat").stat().st_mtime_ns == before:  # the control: it goes on
            time.sleep(0.01)
        program.kill()
    ended = time.monotonic() + 120
    seen = [0, (workspace / "beat").stat().st_mtime_ns]
    while seen[-1] != seen[-2] and time.monotonic() < ended:
        time.sleep(0.2)
        seen.append((workspace / "beat").stat().st_mtime_ns)
    assert seen[-1] == seen[-2]
