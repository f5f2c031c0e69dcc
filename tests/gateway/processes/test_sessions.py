"""Whose processes in the background are, how many there may be, and what ends them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from purplebox.gateway import processes
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.policies import load_policy

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.anyio
# pyright: reportUnknownLambdaType=false

RawClient = Callable[..., AbstractAsyncContextManager[Any]]
BASE = load_policy("base").model_dump(by_alias=True)
LONG = {"wait_seconds": 60}  # at the most: it ends with the first line
GO = "until test -e go; do sleep 0.02; done"  # what starts it takes none of its output


@pytest.mark.parametrize("tool", ["process_output", "process_input", "process_stop"])
@pytest.mark.parametrize(("client", "session"), [("other", "1"), ("me", "2"), ("", "")])
async def test_ids_of_others_name_nothing(here: Here, tool: str, client: str, session: str) -> None:
    async with here.entered() as gateway:
        id = await here.start(gateway, "cat", client="me", session="1")
        arguments: dict[str, Any] = {"process_id": id}
        foreign = await gateway.call(tool, arguments, client=client, session=session)
        assert (foreign.reason, "has no process" in foreign.text) == ("operation_failed", True)
        listed = await gateway.call("process_list", client=client, session=session)
        assert here.content(listed) == {"processes": []}
        arguments |= {"wait_seconds": 0} if tool != "process_stop" else {}
        own = await gateway.call(tool, arguments, client="me", session="1")
        assert own.reason == "completed"  # the control
        assert here.content(own)["running"] == (tool != "process_stop")


async def test_sessions_and_gateways_end_what_they_have(here: Here, raw_client: RawClient) -> None:
    workspace = here.workspace
    async with here.entered() as gateway:
        kept = await here.start(gateway, "sleep 60", client="me", session="kept")
        async with raw_client(lambda session: Single(BuiltIns(gateway))) as wire:
            await wire.initialize()
            beat = "while :; do date +%N > beat; echo on; sleep 0.01; done"
            asked = {"name": "process_start", "arguments": {"command": beat, **LONG}}
            answer = await wire.ask("tools/call", asked)
            assert answer["result"]["structuredContent"]["running"] is True
        before = (workspace / "beat").stat().st_mtime_ns
        await anyio.sleep(0.1)  # ten beats
        assert (workspace / "beat").stat().st_mtime_ns == before
        mine = await gateway.call("process_list", client="me", session="kept")
        assert [one["process_id"] for one in here.content(mine)["processes"]] == [kept]
    ended = {record["process_id"]: record for record in here.records()}
    assert (ended[kept]["stopped_by"], ended[kept]["reason"]) == ("gateway", "cancelled")
    other = next(record for id, record in ended.items() if id != kept)
    assert (other["stopped_by"], other["signal"]) == ("session", 9)


async def test_a_replaced_policy_ends_what_runs_under_it(here: Here) -> None:
    async with here.entered() as gateway:
        id = await here.start(gateway, f"{GO}; echo last words; sleep 60")
        (here.workspace / "go").touch()
        while not here.content(await gateway.call("process_list"))["processes"][0]["unread_bytes"]:
            await anyio.sleep(0.005)  # until it has spoken
        await gateway.replace(here.policy(description="another"))
        told = await gateway.call("process_output", {"process_id": id})
        assert here.content(told)["output"] == "last words\n"
        assert "has been replaced" in here.content(told)["notes"][-1]
        again = await here.start(gateway, "sleep 60")
        assert (
            here.content(await gateway.call("process_list"))["processes"][0]["process_id"] == again
        )
        await gateway.replace(gateway.policy)  # the control: the same one
        assert here.content(await gateway.call("process_list"))["processes"][0]["running"]
    assert here.records()[0]["stopped_by"] == "policy"


async def test_a_cancelled_start_leaves_no_process(here: Here) -> None:
    async with here.entered() as gateway:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                asked = {"command": "sleep 60", "wait_seconds": 60}
                group.start_soon(gateway.call, "process_start", asked)
                while not here.content(await gateway.call("process_list"))["processes"]:
                    await anyio.sleep(0.01)
                scope.cancel()
        assert scope.cancelled_caught
        (listed,) = here.content(await gateway.call("process_list"))["processes"]
        assert listed["running"] is False
    assert here.records()[0]["stopped_by"] == "cancellation"


async def test_how_many(here: Here) -> None:
    resources = {**BASE["resources"], "background": 2}
    async with here.entered(here.policy(resources=resources)) as gateway:
        first = await here.start(gateway, "sleep 60")
        await here.start(gateway, "sleep 60")
        one_more = await gateway.call("process_start", {"command": "sleep 60"})
        assert (one_more.reason, "resources.background" in one_more.text) == ("rate_limited", True)
        await here.start(gateway, "sleep 60", session="another")  # of a session, that is
        await gateway.call("process_stop", {"process_id": first, "force": True})
        await here.start(gateway, "sleep 60")


async def test_all_sessions_together(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST", 2)
    async with here.entered() as gateway:
        for session in "12":
            await here.start(gateway, "sleep 60", session=session)
        refused = await gateway.call("process_start", {"command": "true"}, session="3")
        assert refused.reason == "rate_limited"
        await gateway.end_session("1")
        await here.start(gateway, "sleep 60", session="3")


async def test_what_has_ended_makes_room_the_longest_ended_first(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST", 3)
    async with here.entered() as gateway:
        await here.start(gateway, "sleep 60", session="1")
        for session in "23":  # nobody asks about either
            (here.workspace / "go").unlink(missing_ok=True)
            await here.start(gateway, f"{GO}; echo {session}", session=session)
            (here.workspace / "go").touch()
            while gateway.background()[-1]["running"]:
                await anyio.sleep(0.01)
        await here.start(gateway, "sleep 60", session="4")
        assert [one["session"] for one in gateway.background()] == ["1", "3", "4"]
        (kept,) = here.content(await gateway.call("process_list", session="3"))["processes"]
        said = await gateway.call("process_output", {"process_id": kept["process_id"]}, session="3")
        assert here.content(said)["output"] == "3\n"
        await here.start(gateway, "sleep 60", session="5")
        refused = await gateway.call("process_start", {"command": "true"}, session="6")
        assert refused.reason == "rate_limited"  # the control: all of them run
