"""However a call ends, what comes after its end is done: counted, moved aside, handed on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from purplebox.isolation import Engine, Result, SetupError
from purplebox.isolation.poller import Poller
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio
BASE = load_policy("base")
HOOK = "mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; touch started; sleep 600"


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not true():
            await asyncio.sleep(0.01)


async def once(call: asyncio.Task[Any]) -> None:
    call.cancel()


async def twice(call: asyncio.Task[Any]) -> None:
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()


@pytest.mark.parametrize("cancel", [once, twice])
async def test_what_a_cancelled_command_has_made_is_moved_aside(
    workspace: Path, cancel: Callable[[asyncio.Task[Any]], Awaitable[None]]
) -> None:
    (workspace / ".git").mkdir()
    async with Engine(BASE, workspace) as engine:
        call = asyncio.create_task(engine.run(["sh", "-c", HOOK]))
        await until((workspace / "started").exists)
        assert (workspace / ".git/hooks").exists()  # the control: it is live while it runs
        await cancel(call)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert os.listdir(workspace / ".git") == ["hooks.purple-quarantine-1"]


async def test_anyio_cancels_again_and_again(workspace: Path) -> None:
    (workspace / ".git").mkdir()
    async with Engine(BASE, workspace) as engine, anyio.create_task_group() as group:
        group.start_soon(engine.run, ["sh", "-c", HOOK])
        await until((workspace / "started").exists)
        group.cancel_scope.cancel()
    assert os.listdir(workspace / ".git") == ["hooks.purple-quarantine-1"]


async def close(engine: Engine) -> None:
    await engine.aclose()


async def kill_the_keeper(engine: Engine) -> None:
    os.kill(engine._link._keeper, signal.SIGKILL)


@pytest.mark.parametrize("end", [close, kill_the_keeper])
async def test_a_call_is_over_when_its_command_is(
    workspace: Path, end: Callable[[Engine], Awaitable[None]]
) -> None:
    again = "while :; do [ -d .git/hooks ] || mkdir .git/hooks; touch started-$0; done"
    for _ in range(4):
        shutil.rmtree(workspace / ".git", ignore_errors=True)
        (workspace / ".git").mkdir()
        engine = await Engine(BASE, workspace).__aenter__()
        calls = [asyncio.create_task(engine.run(["sh", "-c", again, name])) for name in "ab"]
        await until(lambda: len(list(workspace.glob("started-*"))) == 2)
        await end(engine)
        results = await asyncio.gather(*calls)
        assert [result.reason for result in results] == ["signaled", "signaled"]
        assert "hooks" not in os.listdir(workspace / ".git")
        for path in workspace.glob("started-*"):
            path.unlink()
        await engine.aclose()


async def test_two_commands_cannot_pass_off_each_others_work_as_found(workspace: Path) -> None:
    """One makes it, another finds it; the first ends, it is moved aside, and the other makes it again."""
    (workspace / ".git").mkdir()
    first = "mkdir .git/hooks; touch made; until [ -e end-first ]; do sleep 0.02; done"
    other = "touch found; until mkdir .git/hooks 2>/dev/null; do sleep 0.02; done; echo evil > .git/hooks/x"
    async with Engine(BASE, workspace) as engine:
        one = asyncio.create_task(engine.run(["sh", "-c", first]))
        await until((workspace / "made").exists)
        two = asyncio.create_task(engine.run(["sh", "-c", other]))
        await until((workspace / "found").exists)
        (workspace / "end-first").touch()
        hooks = ".git/hooks was moved to .git/hooks.purple-quarantine-"
        assert (await one).moved_aside == (f"{hooks}1",)
        assert (await two).moved_aside == (f"{hooks}2",)
    assert sorted(os.listdir(workspace / ".git")) == [
        f"hooks.purple-quarantine-{n}" for n in (1, 2)
    ]


async def test_what_a_person_makes_while_something_runs_is_left_by_the_others(
    workspace: Path,
) -> None:
    """Whoever was there before it cannot tell it from its own; whoever found it has it read-only."""
    async with Engine(BASE, workspace) as engine, await engine.start(["cat"]):
        (workspace / ".git" / "hooks").mkdir(parents=True)
        result = await engine.run(["sh", "-c", "mkdir .git/hooks/x"])
        assert b"Read-only file system" in result.stderr
        assert result.moved_aside == () and (workspace / ".git/hooks").exists()


async def test_what_a_cancelled_call_used_is_not_charged_to_the_next(workspace: Path) -> None:
    forks = (
        "i=0; while [ $i -lt 12 ]; do sleep 600 & i=$((i+1)); done 2>/dev/null; touch forked;"
        "sleep 600"
    )
    resources = BASE.resources.model_copy(update={"processes": 8})
    async with Engine(BASE.model_copy(update={"resources": resources}), workspace) as engine:
        for _ in range(6):
            await engine.run(["true"])  # so that there are cgroups that have served before
        for _ in range(3):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(engine.run, ["sh", "-c", f"touch forked; {forks}"])
                    await until((workspace / "forked").exists)
                    scope.cancel()
            (workspace / "forked").unlink()
        for _ in range(6):
            result = await engine.run(["true"])
            assert (result.limits, (result.usage.processes_peak or 1) <= 1) == ((), True)


async def test_a_callback_that_fails_takes_nothing_from_the_others() -> None:
    told: list[str] = []
    failed: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    poller = Poller()
    pipes = [os.pipe() for _ in range(3)]

    def fail() -> None:
        raise ValueError("no")

    poller.add_reader(pipes[0][0], fail)
    for number, name in ((1, "one"), (2, "two")):
        poller.add_once(pipes[number][0], partial(told.append, name))
    for _, writer in pipes:
        os.write(writer, b"x")
    await until(lambda: failed)
    assert (sorted(told), str(failed[0]["exception"])) == (["one", "two"], "no")
    poller.close()
    for reader, writer in pipes:
        os.close(reader)
        os.close(writer)


async def test_on_output_that_fails_loses_no_output(workspace: Path) -> None:
    failed: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))

    def refuse(name: str, data: bytes) -> None:
        raise ValueError(name)

    async with Engine(BASE, workspace) as engine:
        script = ["sh", "-c", "echo one; sleep 0.2; echo two; echo three >&2"]
        result: Result = await engine.run(script, on_output=refuse)
    assert (result.stdout, result.stderr) == (b"one\ntwo\n", b"three\n")
    assert {str(error) for error in failed} == {"stdout", "stderr"}


async def test_no_room_for_pipes_is_said(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(flags: int) -> tuple[int, int]:
        raise OSError(24, os.strerror(24))

    async with Engine(BASE, workspace) as engine:
        assert (await engine.run(["cat"], stdin=b"x")).stdout == b"x"  # the control
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe2", full)
            with pytest.raises(SetupError, match="Too many open files"):
                await engine.run(["cat"], stdin=b"x")
            with pytest.raises(SetupError, match="Too many open files"):
                await engine.start(["cat"])
        assert (await engine.run(["true"])).exit_code == 0


def changed(**filesystem: object) -> Policy:
    part = BASE.filesystem.model_copy(update=filesystem)
    return BASE.model_copy(update={"filesystem": part})


async def test_home_and_what_each_sandbox_has_to_itself_are_no_workspaces(
    tmp_path: Path, private_home: Path, workspace: Path
) -> None:
    for path, words in (
        (private_home, "is your home directory"),
        (tmp_path, "or holds it"),
        (Path("/var/tmp"), "too wide"),
        (Path("/dev/shm"), "too wide"),
    ):
        with pytest.raises(SetupError, match=words):
            await Engine(BASE, path).__aenter__()
    with pytest.raises(SetupError, match="each sandbox has /var/tmp to itself"):
        await Engine(changed(read=("/var/tmp",)), workspace).__aenter__()
    project = private_home / "project"
    project.mkdir()
    async with Engine(BASE, project) as engine:  # the control
        assert (await engine.run(["pwd"])).stdout.decode() == f"{project}\n"
