"""Processes in the background: what their tools do, and what comes of output and input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from purplebox.gateway import processes
from purplebox.gateway.processes import Tail
from purplebox.policies import load_policy

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.anyio

BASE = load_policy("base").model_dump(by_alias=True)
LONG = {"wait_seconds": 60}  # at the most: it ends with the first line
GO = "until test -e go; do sleep 0.02; done"  # what starts it takes none of its output
PROMPT = "while read x; do echo got $x; done; echo over"


async def test_a_conversation(here: Here) -> None:
    async with here.entered() as gateway:
        begun = await gateway.call(
            "process_start", {"command": f"echo hello; {PROMPT}; exit 3", **LONG}
        )
        assert begun.reason == "completed"
        said = here.content(begun)
        assert (said["running"], said["output"], said["exit_code"]) == (True, "hello\n", None)
        assert said["enforcement"]["seccomp"]["status"] == "full"
        assert begun.text == f"hello\n[{said['process_id']} is running]"
        named = {"process_id": said["process_id"]}

        said = here.content(
            await gateway.call("process_input", {**named, **LONG, "input": "one\n"})
        )
        assert said["output"] == "got one\n"
        listed = here.content(await gateway.call("process_list"))["processes"]
        assert [(one["process_id"], one["running"]) for one in listed] == [
            (named["process_id"], True)
        ]
        closed = await gateway.call("process_input", {**named, **LONG, "close": True})
        output = here.content(closed)["output"]
        while (last := await gateway.call("process_output", named)) and here.content(last)[
            "running"
        ]:
            output += here.content(last)["output"]
        output += here.content(last)["output"]
        assert (output, here.content(last)["exit_code"], last.is_error) == ("over\n", 3, True)
        assert last.text.endswith(f"[{named['process_id']} has ended: exit status 3]")
        gone = await gateway.call("process_output", named)
        assert (gone.reason, gone.is_error) == ("operation_failed", True)
        assert here.content(await gateway.call("process_list")) == {"processes": []}


async def test_output_waits_for_a_line_or_for_its_time(here: Here) -> None:
    async with here.entered() as gateway:
        prompt = {"command": "printf 'name? '; read x; echo hi $x", "wait_seconds": 0}
        begun = here.content(await gateway.call("process_start", prompt))
        named, said = {"process_id": begun["process_id"]}, begun["output"]  # it may be quick
        asked = {**named, "wait_seconds": 0.3}
        while len(said) < 6:
            said += here.content(await gateway.call("process_output", asked))["output"]
        assert said == "name? "
        nothing = here.content(
            await gateway.call("process_output", {**named, "wait_seconds": 0.05})
        )
        assert (nothing["output"], nothing["running"]) == ("", True)
        answer = await gateway.call("process_input", {**named, **LONG, "input": "me\n"})
        assert here.content(answer)["output"] == "hi me\n"


async def test_stopping(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    async with here.entered() as gateway:
        trap = "trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.02; done"
        for command, force, told in (
            (trap, False, ("bye\n", 0, None)),
            (trap, True, ("", None, 9)),
            ("trap '' TERM; echo on; while :; do sleep 0.02; done", False, ("", None, 9)),
        ):
            begun = await gateway.call("process_start", {"command": command, **LONG})
            assert here.content(begun)["output"] == "on\n"
            deaf = command.startswith("trap ''")
            monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.3 if deaf else 120)
            stop = {"process_id": here.content(begun)["process_id"], "force": force}
            ended = await gateway.call("process_stop", stop)
            said = here.content(ended)
            assert said["output"].endswith(told[0])  # of a shell: of the signal, too
            assert (said["exit_code"], said["signal"]) == told[1:]
            assert (said["running"], ended.is_error) == (False, False)
    assert [record["stopped_by"] for record in here.records()] == ["process_stop"] * 3


async def test_a_flood_is_bounded_and_its_end_is_kept(here: Here) -> None:
    resources = {**BASE["resources"], "output_limit": "64K"}
    async with here.entered(here.policy(resources=resources)) as gateway:
        id = await here.start(gateway, f"{GO}; seq 200000; echo last")
        (here.workspace / "go").touch()
        async with asyncio.timeout(120):
            while here.content(await gateway.call("process_list"))["processes"][0]["running"]:
                await asyncio.sleep(0.02)
        output = here.content(await gateway.call("process_output", {"process_id": id}))["output"]
    assert output.endswith("200000\nlast\n")
    assert output.startswith("\n[")
    assert " bytes left out]\n" in output[:60]
    assert len(output) < (64 << 10) + 100


async def test_secrets_are_redacted_also_across_reads(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "planted-7f3a9c1e5b")
    environment: dict[str, Any] = {"pass": ("TOKEN",), "set": {}}
    audit = {"output": "full"}
    network = {
        "isolated": False, "tls": "inspect", "credentials": (
            {"host": "a.test", "header": "X", "value": "${secret:TOKEN}", "placeholder_env": "P"},)
    }  # fmt: skip
    held = here.policy(environment=environment, audit=audit, network=network)
    async with here.entered(held) as gateway:
        id = await here.start(gateway, "printf planted-7f; read x; echo 3a9c1e5b; sleep 60")
        named = {"process_id": id}
        first = await gateway.call("process_output", {**named, "wait_seconds": 0.3})
        second = await gateway.call("process_input", {**named, **LONG, "input": "\n"})
        said = here.content(first)["output"] + here.content(second)["output"]
    assert "3a9c1e5b" not in said
    assert "redacted" in said.lower()


async def test_limits_end_it_and_are_told(here: Here) -> None:
    async with here.entered() as gateway:
        begun = await gateway.call(
            "process_start", {"command": "sleep 60", "timeout_seconds": 0.2, **LONG}
        )
        said = here.content(begun)
        assert (said["running"], said["reason"], begun.is_error) == (False, "timed_out", True)
        assert said["notes"][0].startswith("Limit: timeout_seconds reached")
    assert here.records()[0]["reason"] == "timed_out"


async def test_input_that_nobody_reads(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from purplebox.gateway.tools import processes as tools

    monkeypatch.setattr(tools, "_INPUT_SECONDS", 0.2)
    async with here.entered() as gateway:
        named = {"process_id": await here.start(gateway, "sleep 60")}
        told = await gateway.call("process_input", {**named, "input": "x" * 1_000_000})
        assert (told.reason, "does not read" in told.text) == ("operation_failed", True)
        await gateway.call("process_input", {**named, "close": True, "wait_seconds": 0})
        told = await gateway.call("process_input", {**named, "input": "x"})
        assert "has been closed" in told.text


@pytest.fixture
def tail() -> Iterator[Tail]:
    yield Tail(4)


def test_a_tail_keeps_the_last(tail: Tail) -> None:
    tail.add(b"abc")
    assert (len(tail), tail.is_over, tail.take()) == (3, False, (b"abc", 0))
    tail.add(b"abc")
    tail.add(b"defg")
    assert (tail.is_over, tail.take()) == (True, (b"defg", 3))
    assert tail.take() == (b"", 0)
