"""`Sandbox`: one sandbox in which command after command runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from purplebox.isolation import (
    CommandNotFound,
    Engine,
    Sandbox,
    SetupError,
    SyncEngine,
)
from purplebox.isolation.attendant import END, HEAD, OUT, READY
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")


def inside(
    workspace: Path | None, body: Callable[[Sandbox], Awaitable[None]], policy: Policy = BASE
) -> None:
    async def go() -> None:
        async with Engine(policy, workspace) as engine, await engine.sandbox() as sandbox:
            await body(sandbox)

    async def in_time() -> None:
        async with asyncio.timeout(200):
            await go()

    asyncio.run(in_time())


def limited(**resources: Any) -> Policy:
    return BASE.model_copy(update={"resources": BASE.resources.model_copy(update=resources)})


async def sh(sandbox: Sandbox, script: str, **more: Any) -> bytes:
    result = await sandbox.run(["sh", "-c", script], **more)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return result.stdout


async def running(sandbox: Sandbox) -> bytes:
    """All command lines in it."""
    # Some end while it is read.
    return await sh(sandbox, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_one_command_leaves_the_next_finds(workspace: Path, backend: str) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            async with await engine.sandbox() as sandbox:
                await sh(sandbox, "echo one > /tmp/state; echo two > ~/state; mkdir /tmp/here")
                assert await sh(sandbox, "cat /tmp/state ~/state") == b"one\ntwo\n"
                assert await sh(sandbox, "pwd; echo $PWD", cwd="/tmp/here") == b"/tmp/here\n" * 2
                said = await sh(
                    sandbox, "cat; echo $MORE", stdin=b"given ", env={"MORE": "and more"}
                )
                assert said == b"given and more\n"
                assert sandbox.result is None
            assert sandbox.result is not None
            # The control: each call of `run` has one to itself.
            await engine.run(["sh", "-c", "echo one > /tmp/state"])
            assert (await engine.run(["cat", "/tmp/state"])).exit_code == 1

    anyio.run(go, backend=backend)


def test_how_a_command_ended_is_told(workspace: Path) -> None:
    async def body(sandbox: Sandbox) -> None:
        spend = "import sys; bytearray(64 << 20); sys.stderr.write('e' * 10); sys.exit(7)"
        result = await sandbox.run(["python3", "-c", spend])
        assert (result.exit_code, result.signal, result.reason) == (7, None, "exited")
        assert result.stderr == b"e" * 10 and result.stderr_bytes == 10
        assert result.usage.counted_by == "rusage" and (result.usage.cpu_seconds or 0) > 0
        assert (result.usage.memory_peak_bytes or 0) > 64 << 20
        assert result.enforcement.layers["seccomp"].status == "full"
        killed = await sandbox.run(["sh", "-c", "kill -TERM $$"])
        assert (killed.exit_code, killed.signal, killed.reason) == (None, 15, "signaled")
        assert (await sandbox.run(["printf", "%s", "\udcff\u00e9"])).stdout == b"\xff\xc3\xa9"
        for argv, cwd, code in (
            (["nonesuch"], "", "ENOENT"), (["/etc/passwd"], "", "EACCES"), (["true"], "/nowhere", "ENOENT"),
            (["true", "a\0b"], "", "EINVAL"), ([], "", "EINVAL"), (["true", "x" * 200_000], "", "E2BIG"),
        ):  # fmt: skip
            with pytest.raises(CommandNotFound) as error:
                await sandbox.run(argv, cwd=cwd)
            assert error.value.code == code
        assert await sh(sandbox, "echo goes on") == b"goes on\n"

    inside(workspace, body)


def test_several_at_once_each_have_their_own_output(workspace: Path) -> None:
    async def body(sandbox: Sandbox) -> None:
        chunks: list[bytes] = []
        size = 5 << 20

        async def flood(letter: str) -> None:
            result = await sandbox.run(
                ["sh", "-c", f"head -c {size} /dev/zero | tr '\\0' {letter}; echo {letter} >&2"],
                on_output=lambda name, data: chunks.append(data),
            )
            assert set(result.stdout) == {ord(letter)}
            assert (result.stdout_bytes, result.stderr) == (size, f"{letter}\n".encode())
            assert [limit.key for limit in result.limits] == ["resources.output_limit"]
            assert result.truncated and len(result.stdout) == BASE.resources.output_bytes

        await asyncio.gather(*map(flood, "abcdefgh"))
        assert sum(map(len, chunks)) == 8 * (size + 2)
        given = os.urandom(3 << 20)
        assert await sh(sandbox, "sha256sum | cut -c 1-5; true", stdin=given)
        counted = await sandbox.run(["wc", "-c"], stdin=given)
        assert counted.stdout.split() == [b"3145728"]

    inside(workspace, body)


def test_what_takes_too_long_is_killed_with_its_session_and_the_sandbox_goes_on(
    workspace: Path,
) -> None:
    async def body(sandbox: Sandbox) -> None:
        many = (
            "echo begun; for i in 1 2 3; do (sleep 1000 &) ; done; setsid sleep 2000 & sleep 3000"
        )
        late = await sandbox.run(["bash", "-mc", many], wall_seconds=0.5)
        assert (late.reason, late.stdout) == ("timed_out", b"begun\n")
        assert 0.4 < late.wall_seconds < 100
        left = await running(sandbox)
        assert b"sleep 2000" in left  # which has left its session
        assert b"sleep 1000" not in left and b"sleep 3000" not in left

    inside(workspace, body)


@pytest.mark.parametrize("way", ["task", "scope", "twice"])
def test_who_is_cancelled_goes_on_when_the_command_is_killed(workspace: Path, way: str) -> None:
    async def body(sandbox: Sandbox) -> None:
        begun = anyio.Event()
        begin = ["sh", "-c", "echo begun; exec sleep 1234"]
        call = sandbox.run(begin, on_output=lambda name, data: begun.set())
        if way == "scope":
            async with anyio.create_task_group() as group:
                group.start_soon(_awaited, call)
                await begun.wait()
                group.cancel_scope.cancel()
        else:
            task = asyncio.ensure_future(call)
            await begun.wait()
            task.cancel()
            if way == "twice":
                await asyncio.sleep(0)  # it deals with the first
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        while b"sleep 1234" in await running(sandbox):
            assert way == "twice"  # then it does not wait, and the command ends all the same

    inside(workspace, body)


@pytest.mark.parametrize("stdin", [b"", bytes(5 << 20)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_who_is_cancelled_before_it_is_asked_for_ends_no_other(
    workspace: Path, turns: int, stdin: bytes
) -> None:
    async def body(sandbox: Sandbox) -> None:
        other = asyncio.ensure_future(sandbox.run(["sleep", "1234"]))
        task = asyncio.ensure_future(sandbox.run(["sleep", "1234"], stdin=stdin))
        for _ in range(turns):
            await asyncio.sleep(0)  # one turn of the loop further
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not stdin:  # with half of it in the pipe there is no way but to end all
            assert time.monotonic() - began < 8  # and not when patience with no answer is over
            assert await sh(sandbox, "echo here") == b"here\n"
            assert not other.done()
        other.cancel()

    inside(workspace, body)


async def _awaited(call: Awaitable[object]) -> None:
    await call


def test_what_its_caller_does_with_the_output_may_fail(workspace: Path) -> None:
    async def body(sandbox: Sandbox) -> None:
        def fail(name: str, data: bytes) -> None:
            raise LookupError(name)

        with pytest.raises(LookupError, match="stdout"):
            await sandbox.run(["sh", "-c", "echo x; exec sleep 1234"], on_output=fail)
        assert b"sleep 1234" not in await running(sandbox)

    inside(workspace, body)


def test_a_background_process_goes_on_to_the_end_of_the_sandbox(workspace: Path) -> None:
    async def body(sandbox: Sandbox) -> None:
        server = (
            "import socket; s = socket.create_server(('127.0.0.1', 8765))\n"
            "open('/tmp/up', 'w').close()\n"
            "while True: s.accept()[0].sendall(b'served')"
        )
        began = time.monotonic()
        await sandbox.run(["sh", "-c", 'python3 -c "$1" & echo started', "sh", server])
        assert time.monotonic() - began < 60
        ask = "import socket; print(socket.create_connection(('127.0.0.1', 8765)).recv(9).decode())"
        await sh(sandbox, "while ! [ -e /tmp/up ]; do sleep 0.05; done")
        assert (await sandbox.run(["python3", "-c", ask])).stdout == b"served\n"

    inside(workspace, body)


def test_limits_are_all_its_commands_together_and_end_it(workspace: Path) -> None:
    async def body(sandbox: Sandbox) -> None:
        hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
        first = asyncio.ensure_future(sandbox.run(["sleep", "1000"]))
        result = await sandbox.run(["python3", "-c", hog])
        limits = [(limit.key, limit.effect) for limit in result.limits]
        if result.enforcement.layers["cgroup"].status == "full":
            assert (result.reason, limits) == (
                "out_of_memory",
                [("resources.memory_limit", "ended")],
            )
            assert (await first).reason == "out_of_memory"
            with pytest.raises(SetupError, match="has ended: out_of_memory"):
                await sandbox.run(["true"])
        first.cancel()

    inside(workspace, body, limited(memory_bytes=200 << 20))

    async def late(sandbox: Sandbox) -> None:
        result = await sandbox.run(["sleep", "1000"])
        assert result.reason == "timed_out"
        assert [limit.key for limit in result.limits] == ["resources.timeout"]
        assert sandbox.result is not None

    inside(workspace, late, limited(wall_seconds=1.0))


@pytest.mark.parametrize(
    "frame",
    [
        HEAD.pack(1, b"?", 0), HEAD.pack(1, READY, 0), HEAD.pack(1, OUT, 1 << 30), b"x" * 100,
        *(HEAD.pack(1, END, len(said)) + said for said in (
            b"nonsense", b"[]", b'{"status": -1}', b'{"code": 1}',
            b'{"status": 0, "cpu_seconds": "1", "memory_peak_bytes": 1, "read_bytes": 1, "written_bytes": 1}',
            b'{"status": 99999, "cpu_seconds": 1, "memory_peak_bytes": 1, "read_bytes": 1, "written_bytes": 1}',
        )),
    ],
)  # fmt: skip
def test_who_answers_in_place_of_the_attendant_ends_the_sandbox(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, frame: bytes
) -> None:
    """As a command can that writes to its pipe, where that is not another user's."""
    forger = (
        f"import os, time; os.write(1, {HEAD.pack(0, READY, 0)!r}); os.read(0, 65536); "
        f"os.write(1, {frame!r}); time.sleep(1000)"
    )
    monkeypatch.setattr("purplebox.isolation.standing._program", lambda: forger)

    async def body(sandbox: Sandbox) -> None:
        result = await sandbox.run(["true"])
        assert (result.exit_code, result.signal) == (None, 9)
        assert sandbox.result is not None

    inside(workspace, body)


def test_a_command_that_ends_or_stops_the_attendant_ends_no_more_than_its_sandbox(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("purplebox.isolation.standing._PATIENCE_SECONDS", 0.5)

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            async with await engine.sandbox() as sandbox:
                assert (await sandbox.run(["sh", "-c", "kill -KILL $PPID"])).signal == 9
            async with await engine.sandbox() as sandbox:
                late = await sandbox.run(["sh", "-c", "kill -STOP $PPID"], wall_seconds=0.5)
                assert late.signal == 9
            assert (await engine.run(["true"])).exit_code == 0

    asyncio.run(go())


def test_protected_names_are_held_and_what_is_made_of_them_goes_at_the_end(workspace: Path) -> None:
    (workspace / ".git").mkdir()
    (workspace / ".git" / "config").write_text("[core]\n")

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            async with await engine.sandbox() as sandbox:
                kept = await sandbox.run(["sh", "-c", "echo x > .git/config"])
                assert b"Read-only file system" in kept.stderr
                await sh(sandbox, "mkdir .git/hooks; echo x > .git/hooks/pre-commit; echo y > free")
            assert sandbox.result is not None and len(sandbox.result.moved_aside) == 1
        assert not (workspace / ".git" / "hooks").exists()
        assert (workspace / "free").read_text() == "y\n"  # the control

    asyncio.run(go())


def test_a_program_without_an_event_loop_has_it_too(workspace: Path) -> None:
    with SyncEngine(BASE, workspace) as engine, engine.sandbox() as sandbox:
        assert sandbox.run(["sh", "-c", "echo 1 > /tmp/x"]).exit_code == 0
        assert sandbox.run(["cat", "/tmp/x"]).stdout == b"1\n"
        assert sandbox.result is None
    assert sandbox.result is not None
    before = len(os.listdir("/proc/self/fd"))
    with SyncEngine(BASE, workspace) as engine:
        late = engine.sandbox()
    assert late.result is not None  # its engine has ended it
    for _ in range(2):
        late.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(SetupError, match="has been closed"):
        late.run(["true"])


def test_it_needs_python_and_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purplebox.isolation.standing.sys.executable", "/usr/bin/nonesuch")
    with pytest.raises(SetupError, match="needs Python inside"):
        inside(workspace, _nothing)


def test_nothing_of_it_is_left(workspace: Path) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            await (await engine.sandbox()).aclose()  # what is made once
            while engine._commands._missing() or engine._commands._making:
                await asyncio.sleep(0.01)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                async with await engine.sandbox() as sandbox:
                    await sandbox.run(["sh", "-c", "sleep 1000 & true"])
            assert len(os.listdir("/proc/self/fd")) <= before
            forgotten = await engine.sandbox()
            waiting = asyncio.ensure_future(forgotten.run(["sleep", "1000"]))
            await asyncio.sleep(0)  # it has begun
        result = await waiting  # its engine has ended it
        assert (result.exit_code, result.signal) == (None, 9)
        await forgotten.aclose()

    asyncio.run(go())


async def _nothing(_: Sandbox) -> None: ...
