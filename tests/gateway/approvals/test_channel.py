"""The way to `purple approvals`: for the user's own processes, and for nothing in a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.approvals import Board, Question
from purplebox.gateway.approvals.channel import (
    Channel,
    ChannelError,
    answer,
    questions,
    runtime_directory,
    stranger,
)
from purplebox.isolation import Engine
from purplebox.policies import Policy, load_policy

QUESTION = Question(
    id="a1b2c3d4", binding="f" * 64, title="shell", text="the text", arguments={},
    choices=("once", "deny"), expires_seconds=60, facts={"reason": "because"},
)  # fmt: skip
# What an agent would try: list, then say yes to its own question.
ATTACK = """
import json, os, socket, sys
try:
    names = [n for n in os.listdir(sys.argv[1]) if n.endswith(".sock")]
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(os.path.join(sys.argv[1], names[0]))
    s.sendall(json.dumps({"op": "answer", "id": "a1b2c3d4", "choice": "once",
                          "binding": "f" * 64}).encode() + b"\\n")
    print(s.makefile().readline().strip())
except OSError as error:
    print(type(error).__name__)
"""


@contextlib.asynccontextmanager
async def asking(directory: Path) -> AsyncGenerator[asyncio.Task[Any]]:
    board = Board("serve")
    async with Channel(board, directory):
        task = asyncio.create_task(board.ask(QUESTION))
        await asyncio.sleep(0)
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_another_process_of_the_user_lists_and_answers(tmp_path: Path) -> None:
    # Longer than a socket's path may be.
    directory = tmp_path / ("x" * 100) / "run"

    async def go() -> None:
        async with asking(directory) as task:
            found = await asyncio.to_thread(lambda: list(questions(directory)))
            ((name, question),) = found
            assert (question["id"], question["text"]) == ("a1b2c3d4", "the text")
            stale = {**question, "binding": "0" * 64}
            with pytest.raises(ChannelError, match="another call"):
                await asyncio.to_thread(answer, name, stale, "once", directory)
            await asyncio.to_thread(answer, name, question, "once", directory)
            assert (await task).choice == "once"
            with pytest.raises(ChannelError, match="no question"):
                await asyncio.to_thread(answer, name, question, "once", directory)

    asyncio.run(go())
    assert list(directory.iterdir()) == []
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("granted", [False, True])
def test_a_sandboxed_command_cannot_answer(granted: bool, workspace: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assistant = load_policy("code-assistant")
    grant = assistant.filesystem.model_copy(update={"write": (str(directory),) if granted else ()})
    policy: Policy = assistant.model_copy(update={"filesystem": grant})

    async def go() -> tuple[str, str, bool]:
        async with asking(directory) as task:
            async with Engine(policy, workspace) as engine:
                inside = await engine.run(["python3", "-c", ATTACK, str(directory)])
            assert not task.done()
            control = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ATTACK, str(directory), stdout=subprocess.PIPE
            )
            outside, _ = await control.communicate()
            return inside.stdout.decode().strip(), outside.decode().strip(), task.done()

    inside, outside, answered = asyncio.run(go())
    assert json.loads(outside) == {"taken": "a1b2c3d4"}  # the control: the target is live
    assert answered
    if not granted:
        assert inside == "FileNotFoundError"
    elif os.geteuid() == 0:
        assert "is not the gateway's" in json.loads(inside)["error"]  # the user is nobody's
    else:
        assert "another user namespace" in json.loads(inside)["error"]


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(ChannelError, match="not private"):
        list(questions(directory))

    async def go() -> None:
        async with Channel(Board(), directory):
            pass

    with pytest.raises(ChannelError, match="not private"):
        asyncio.run(go())
    directory.chmod(0o700)
    asyncio.run(go())
    assert list(questions(directory)) == []


def test_a_killed_gateway_leaves_nothing_that_matters(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    code = (
        "import asyncio, pathlib, sys\n"
        "from purplebox.gateway.approvals import Board\n"
        "from purplebox.gateway.approvals.channel import Channel\n"
        "async def go():\n"
        "    async with Channel(Board(), pathlib.Path(sys.argv[1])):\n"
        "        print('up', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(go())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE
    ) as gateway:
        assert gateway.stdout is not None
        assert gateway.stdout.readline() == b"up\n"
        assert len(list(directory.iterdir())) == 1
        gateway.send_signal(signal.SIGKILL)
    assert len(list(directory.iterdir())) == 1
    assert list(questions(directory)) == []
    assert list(directory.iterdir()) == []


def test_nonsense_gets_a_sentence_or_nothing_and_the_channel_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def say(line: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(next(directory.iterdir())))
            peer.sendall(line)
            peer.shutdown(socket.SHUT_WR)
            return peer.makefile("rb").read()

    async def go() -> None:
        async with asking(directory):
            for line in (b"", b"{", b"\xff\n"):
                assert await asyncio.to_thread(say, line + b"\n") == b""
            for line in (b"[]", b"{}", b'{"op": "answer", "id": 1}'):
                assert b"ops are" in await asyncio.to_thread(say, line + b"\n")
            assert len(await asyncio.to_thread(lambda: list(questions(directory)))) == 1

    asyncio.run(go())


def test_a_peer_is_known_by_the_kernel_and_not_by_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert stranger(theirs) == ""
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        assert "is not the gateway's" in stranger(theirs)


def test_the_directory_is_the_runtime_directory(
    monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_directory() == Path("/run/user/7/purple")
