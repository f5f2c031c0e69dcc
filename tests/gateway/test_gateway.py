"""The gateway as a Python object: stages, approvals, cancellation, the record, spans."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from purplebox import Gateway
from purplebox.gateway.audit import spans, verify
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Approval, Call, Ran, Refusal, Version
from purplebox.gateway.reasons import Reason
from purplebox.policies import Decision, Policy, load_policy
from purplebox.policies.judging import Tools

ASSISTANT = load_policy("code-assistant")
ASKING = Policy.model_validate(
    {**ASSISTANT.model_dump(by_alias=True), "name": "asking", "tools": {"rules": (
        {"tool": "shell", "effect": "ask", "reason": "a person decides"},)}}
)  # fmt: skip


def ends(log: Path) -> list[dict[str, Any]]:
    return [entry for _, entry in entries(log) if entry and entry["event"] == "end"]


class Echo:
    """A stage that writes down what it sees and may refuse."""

    def __init__(self, name: str, seen: list[str], refuse: str = "") -> None:
        self.name, self.seen, self.refuse = name, seen, refuse

    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        assert call.call_id
        self.seen.append(f"before {self.name}")
        if call.tool == self.refuse:
            return Refusal(
                reason=Reason.POLICY_DENIED, rule=self.name, text="not now", retry_seconds=2.5
            )
        return None

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        self.seen.append(f"after {self.name}")
        return ran


def test_stages_stand_around_the_run_and_one_may_refuse(workspace: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    log = tmp_path / "log"

    async def go() -> None:
        stages = (Echo("outer", seen), Echo("inner", seen, refuse="shell"))
        async with Gateway(ASSISTANT, workspace, audit_log=log, stages=stages) as gateway:
            refused = await gateway.call("shell", {"command": "touch made"})
            assert (refused.reason, refused.text) == (Reason.POLICY_DENIED, "not now")
            assert refused.is_error
            assert (await gateway.call("list_directory")).content is not None

    asyncio.run(go())
    assert not (workspace / "made").exists()
    assert seen == [
        "before outer", "before inner", "after outer",
        "before outer", "before inner", "after inner", "after outer",
    ]  # fmt: skip
    assert ends(log)[0]["refused_by"] == "inner"
    assert ends(log)[0]["retry_seconds"] == 2.5


class Person:
    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        assert decision.effect == "ask"
        return Approval(allowed=self.allowed, by="test", text="rather not")


@pytest.mark.parametrize(
    ("approver", "reason"),
    [
        (None, Reason.APPROVAL_REQUIRED),
        (Person(False), Reason.APPROVAL_DENIED),
        (Person(True), Reason.COMPLETED),
    ],
)
def test_what_asks_runs_only_with_a_yes(
    workspace: Path, tmp_path: Path, approver: Person | None, reason: Reason
) -> None:
    log = tmp_path / "log"

    async def go() -> Reason:
        async with Gateway(ASKING, workspace, audit_log=log, approver=approver) as gateway:
            return (await gateway.call("shell", {"command": "touch made"})).reason

    assert asyncio.run(go()) == reason
    assert (workspace / "made").exists() == (reason is Reason.COMPLETED)
    if approver is not None:
        assert ends(log)[0]["approval"] == {"allowed": approver.allowed, "by": "test"}


def test_a_cancelled_call_is_killed_and_recorded(workspace: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def go() -> None:
        async with Gateway(ASSISTANT, workspace, audit_log=log) as gateway:
            command = {"command": "echo > started; sleep 60; echo > late"}
            task = asyncio.create_task(gateway.call("shell", command))
            while not (workspace / "started").exists():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(go())
    assert ends(log)[0]["reason"] == "cancelled"
    assert ends(log)[0]["wall_seconds"] < 50
    assert verify(log).interrupted == ()


def test_a_call_that_cannot_be_recorded_does_not_run(workspace: Path, tmp_path: Path) -> None:
    async def go() -> None:
        async with Gateway(ASSISTANT, workspace, audit_log=tmp_path / "log") as gateway:
            await gateway.call("shell", {"command": "touch control"})
            log = gateway.calls._log
            log._failed = OSError(28, "No space left on device")
            with pytest.raises(OSError, match="No space left"):
                await gateway.call("shell", {"command": "touch made"})

    asyncio.run(go())
    assert (workspace / "control").exists()
    assert not (workspace / "made").exists()


def test_the_synchronous_face_does_the_same(workspace: Path, tmp_path: Path) -> None:
    with Gateway("code-assistant", workspace, audit_log=tmp_path / "log").sync() as gateway:
        assert [tool.name for tool in gateway.tools()][:2] == ["shell", "read_file"]
        assert gateway.call("shell", {"command": "pwd"}).text == str(workspace)
        assert gateway.call("shell", {"command": "exit 3"}).is_error
        assert gateway.call("nonesuch").reason is Reason.UNKNOWN_TOOL


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(spans, "is_on", lambda: True)
    yield exporter
    provider.shutdown()


def test_a_call_is_one_span_with_decision_and_enforcement(
    workspace: Path, tmp_path: Path, exported: InMemorySpanExporter
) -> None:
    log = tmp_path / "log"

    async def go() -> None:
        async with Gateway(ASSISTANT, workspace, audit_log=log) as gateway:
            await gateway.call("shell", {"command": "exit 4"})
            await gateway.call("shell", {"command": 5})
            # An agent framework's own span of the tool call is added to, not doubled.
            with spans._tracer.start_as_current_span("execute_tool mine"):
                await gateway.call("shell", {"command": "true"})

    asyncio.run(go())
    ran, refused, framework = exported.get_finished_spans()
    assert framework.name == "execute_tool mine"
    assert framework.attributes is not None
    assert framework.attributes["process.exit.code"] == 0
    assert "error.type" not in framework.attributes
    assert ran.name == "execute_tool shell"
    assert ran.attributes is not None
    assert ran.attributes["gen_ai.operation.name"] == "execute_tool"
    assert ran.attributes["process.exit.code"] == 4
    assert ran.attributes["error.type"] == "tool_error"
    assert ran.attributes["purple.enforcement.seccomp"] == "full"
    assert ran.attributes["purple.decision.effect"] == "allow"
    assert refused.attributes is not None
    assert refused.attributes["purple.reason"] == "invalid_arguments"
    assert refused.attributes["error.type"] == "tool_error"
    begun = [entry for _, entry in entries(log) if entry and entry["event"] == "begin"]
    assert ran.context is not None
    assert begun[0]["span_id"] == trace.format_span_id(ran.context.span_id)


def test_a_call_is_judged_run_and_recorded_in_its_canonical_form(
    workspace: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (workspace / "secret").mkdir()
    (workspace / "secret" / "key").write_text("k")
    (workspace / "a").write_text("public")
    policy = ASSISTANT.model_copy(
        update={"tools": Tools.model_validate({"rules": ({
            "when": "paths.exists(p, glob(p, 'secret/**'))", "effect": "deny", "reason": "no"},)})}
    )  # fmt: skip

    async def go() -> None:
        async with Gateway(policy, workspace, audit_log=log) as gateway:
            for path in ("secret/key", "./x/../secret/key", f"{workspace}//secret/key", "/proc/self/cwd/secret/key"):  # fmt: skip
                refused = await gateway.call("read_file", {"path": path})
                assert refused.reason is Reason.POLICY_DENIED, path
                assert "rule tools.rules[0]" in refused.text
            control = await gateway.call("read_file", {"path": "./x/..//a"})
            assert control.text == "public"
            assert control.content is not None
            assert control.content["path"] == "a"
            strange = await gateway.call("read_file", {"path": "/dev/fd/0"})
            assert strange.reason is Reason.ARGUMENTS_AMBIGUOUS

    asyncio.run(go())
    begun = [entry for _, entry in entries(log) if entry and entry["event"] == "begin"]
    assert begun[1]["arguments"] == {"path": f"{workspace}/secret/key"}
    assert begun[4]["arguments"] == {"path": f"{workspace}/a"}
