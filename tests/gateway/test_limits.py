"""Limits on calls: what is counted for whom, what a refusal says, and when the next call may begin."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from purplebox import Gateway
from purplebox.gateway import limits
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import REFUSAL, Call, Ran, Version, text_result
from purplebox.gateway.limits import Counter, Limits, size_of
from purplebox.gateway.reasons import Reason
from purplebox.policies import Decision, Policy, load_policy

ALLOWED = Decision(effect="allow", reason="", rule="")


class Bench:
    """The stage alone, with a clock that a test sets."""

    def __init__(self, *given: dict[str, Any]) -> None:
        self.now = 1000.0
        self.stage = Limits(lambda: self.now)
        policy = Policy.model_validate({"name": "p", "limits": given})
        self.version = cast(Version, SimpleNamespace(policy=policy))
        self.count = 0

    def begin(self, **call: Any) -> tuple[str, float | None]:
        """Id of the call that began, or the rule that refused it and when to try again."""
        self.count += 1
        given: dict[str, Any] = {"tool": "t", "client": "c", "arguments": {}, **call}
        made = Call(**given, call_id=str(self.count))
        refusal = asyncio.run(self.stage.before(made, ALLOWED, self.version))
        if refusal is None:
            return made.call_id, None
        assert refusal.reason == Reason.RATE_LIMITED
        assert f"Try again in {refusal.retry_seconds} s" in refusal.text
        assert refusal.person
        return refusal.rule, refusal.retry_seconds

    def end(self, call_id: str, size: int = 0) -> None:
        call = Call(tool="t", arguments={}, call_id=call_id)
        ran = Ran(result=text_result("x" * size))
        assert asyncio.run(self.stage.after(call, ran, self.version)) is ran

    def call(self, size: int = 0, seconds: float = 0.0, **call: Any) -> str:
        """One call from begin to end; "" or the rule that refused it."""
        begun, retry = self.begin(**call)
        if retry is not None:
            return begun
        self.now += seconds
        self.end(begun, size)
        return ""


def test_calls_in_a_window_are_counted_and_the_time_to_wait_is_enough() -> None:
    bench = Bench({"calls": 3})
    for _ in range(3):
        assert bench.call() == ""
        bench.now += 10
    rule, retry = bench.begin()
    assert rule == "limits[0].calls"
    assert retry is not None
    assert 30 <= retry <= 32  # the first call leaves the window of a minute then
    bench.now += retry - 2
    assert bench.call() == "limits[0].calls"
    bench.now += 2
    assert bench.call() == ""
    assert bench.call() == "limits[0].calls"  # and only that one


def test_concurrent_calls_are_counted_while_they_run() -> None:
    bench = Bench({"concurrent": 2})
    first, _ = bench.begin()
    bench.begin()
    assert bench.begin() == ("limits[0].concurrent", 1)
    bench.end(first)
    assert bench.begin()[1] is None


def test_bytes_of_arguments_and_results_are_counted() -> None:
    bench = Bench({"bytes": 1000, "every": "10s"})
    assert bench.call(size=600, arguments={"a": "x" * 300}) == ""
    assert bench.call(size=600) == ""  # not known before it has run
    assert bench.call() == "limits[0].bytes"
    bench.now += 10.2
    assert bench.call() == ""


def test_running_time_is_counted_also_of_calls_that_still_run() -> None:
    bench = Bench({"time": "30s", "every": "5m"})
    assert bench.call(seconds=20) == ""
    begun, _ = bench.begin()
    bench.now += 11
    assert bench.call() == "limits[0].time"
    bench.end(begun)
    bench.now += 306
    assert bench.call() == ""


@pytest.mark.parametrize(("per", "other"), [
    (["client"], {"client": "d"}), (["session"], {"session": "s"}), (["server"], {"server": "x"}),
    (["tool"], {"tool": "u"}), (["tool"], {"server": "x"}), (["client", "tool"], {"client": "d"}),
])  # fmt: skip
def test_each_combination_has_a_counter_of_its_own(per: list[str], other: dict[str, Any]) -> None:
    bench = Bench({"calls": 1, "per": tuple(per)})
    together = Bench({"calls": 1, "per": ()})  # the control
    assert bench.call() == together.call() == ""
    assert bench.call() == together.call() == "limits[0].calls"
    assert bench.call(**other) == ""
    assert together.call(**other) == "limits[0].calls"


def test_a_limit_concerns_what_its_globs_name_and_the_first_reached_refuses() -> None:
    bench = Bench({"tool": "sh*", "calls": 1}, {"server": "git", "client": "c*", "calls": 2})
    assert bench.call(tool="shell") == ""
    assert bench.call(tool="shell", server="git") == "limits[0].calls"
    assert [bench.call(server="git") for _ in range(3)] == ["", "", "limits[1].calls"]
    assert bench.call(server="git", client="x") == ""
    assert bench.call() == ""


def test_a_refused_call_counts_nowhere() -> None:
    bench = Bench({"calls": 2}, {"concurrent": 1})
    begun, _ = bench.begin()
    for _ in range(5):
        assert bench.begin()[0] == "limits[1].concurrent"
    bench.end(begun)
    assert bench.call() == ""
    assert bench.call() == "limits[0].calls"


def test_state_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_COUNTERS", 3)
    bench = Bench({"calls": 5})
    for number in range(3):
        assert bench.call(client=f"c{number}") == ""
    assert bench.begin(client="d")[0] == "limits[0].per"
    assert bench.call(client="c1") == ""  # who has a counter keeps it
    bench.now += 62
    assert bench.call(client="d") == ""
    counter = Counter(every=60)
    for number in range(10_000):
        counter.begin(str(number), number / 10)
        counter.end(str(number), 1, number / 10)
        counter.wait(bench.version.policy.limits[0], number / 10)
    assert len(counter.slots) <= limits.SLOTS + 2
    assert not counter.running


def test_sizes() -> None:
    assert size_of({"ab": ["cde", 1, None, {"f": "é"}]}) == 2 + 3 + 8 + 8 + 1 + 1


def test_a_limit_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="say what is limited"):
        Policy.model_validate({"name": "p", "limits": ({"tool": "x"},)})


def test_client_and_record_are_told(workspace: Path) -> None:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    policy = Policy.model_validate(
        {**base, "name": "few", "limits": ({"calls": 1, "every": "1h"},)}
    )
    log = workspace.parent / "log"

    async def go() -> None:
        async with Gateway(policy, workspace, audit_log=log) as gateway:
            assert (await gateway.call("list_directory", client="a")).reason == Reason.COMPLETED
            refused = await gateway.call("shell", {"command": "touch made"}, client="a")
            assert refused.reason == Reason.RATE_LIMITED
            told = refused.result["_meta"][REFUSAL]
            assert told["reason"] == "rate_limited"
            assert told["rule"] == "limits[0].calls"
            assert 3500 < told["retry_seconds"] <= 3661
            assert "Raise limits[0].calls" in told["person"]
            other = await gateway.call("list_directory", client="b")
            assert other.reason == Reason.COMPLETED

    asyncio.run(go())
    assert not (workspace / "made").exists()
    ended = [e for _, e in entries(log) if e and e["event"] == "end"]
    assert ended[1]["refused_by"] == "limits[0].calls"
    assert ended[1]["retry_seconds"] > 3500


def test_a_cancelled_call_is_counted_as_ended(workspace: Path) -> None:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    policy = Policy.model_validate({**base, "name": "one", "limits": ({"concurrent": 1},)})
    started = asyncio.Event

    async def go() -> tuple[str, str]:
        async with Gateway(policy, workspace, audit_log=workspace.parent / "log") as gateway:
            running = started()
            task = asyncio.create_task(
                gateway.call(
                    "shell", {"command": "echo on; sleep 60"}, progress=lambda _: running.set()
                )
            )
            await running.wait()
            refused = await gateway.call("list_directory")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return refused.reason, (await gateway.call("list_directory")).reason

    assert asyncio.run(go()) == (Reason.RATE_LIMITED, Reason.COMPLETED)


def test_sizes_of_json_are_near_what_the_wire_has() -> None:
    value = {"content": [{"type": "text", "text": "x" * 1000}], "isError": False}
    assert abs(size_of(value) - len(json.dumps(value))) < 50
