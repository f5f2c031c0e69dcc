"""Sessions that have taken something in: asked, refused, recorded; bounded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.calls import Approval, Call, Ran, Version, text_result
from purplebox.gateway.flows import Flows
from purplebox.policies import Decision, Policy, load_policy


def policy(effect: str) -> Policy:
    fields = {
        **load_policy("base").model_dump(by_alias=True),
        "flow": ({"after": {"read": "private/**"}, "then": {"tool": {"write_*": effect}}},),
    }
    return Policy.model_validate(fields)


class Yes:
    """Somebody who says yes and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Decision] = []

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        self.asked.append(decision)
        return Approval(allowed=True, by="test")


@pytest.fixture
def tree(workspace: Path) -> Path:
    (workspace / "private").mkdir()
    (workspace / "private/note").write_text("note")
    (workspace / "plain").write_text("plain")
    (workspace / "link").symlink_to("private/note")
    return workspace


WRITE = ("write_file", {"path": "out", "content": "x"})


@pytest.mark.parametrize("path", ["private/note", "link", "private/none"])
def test_after_a_private_read_sending_is_refused_in_that_session_only(tree: Path, path: str) -> None:  # fmt: skip
    async def go() -> None:
        log = tree.parent / "log"
        async with Gateway(policy("deny"), tree, audit_log=log) as gateway:

            async def call(tool: str, arguments: dict[str, Any], session: str = "a") -> str:
                outcome = await gateway.call(tool, arguments, client="c", session=session)
                return f"{outcome.reason} {outcome.decision.rule}"

            assert await call("read_file", {"path": "plain"}) == "completed tools.default"
            assert await call(*WRITE) == "completed tools.default"
            await call("read_file", {"path": path})
            assert await call(*WRITE) == "flow_denied flow[0]"
            assert await call(*WRITE, session="b") == "completed tools.default"
            assert await call("read_file", {"path": "plain"}) == "completed tools.default"
            await call("shell", {"command": "true"}, session="b")  # it could have read it
            assert await call(*WRITE, session="b") == "flow_denied flow[0]"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        marked = [line for line in lines if "flow_marks" in line]
        assert marked[0]["flow_marks"][0].startswith(f"read {tree}/private/")
        assert marked[-1]["flow_marks"] == ["had private/** in its sandbox"]
        denied = [line for line in lines if line.get("rule") == "flow[0]"]
        assert f"this session read {tree}/private/" in denied[0]["decision_reason"]
        assert "(call " in denied[0]["decision_reason"]

    asyncio.run(go())


def test_a_person_is_asked_with_the_reason(tree: Path) -> None:
    async def go() -> None:
        yes = Yes()
        gateway = Gateway(policy("ask"), tree, audit_log=tree.parent / "log", approver=yes)
        async with gateway:
            await gateway.call("read_file", {"path": "private/note"})
            assert (await gateway.call(*WRITE)).reason == "completed"
            assert (await gateway.call(*WRITE)).reason == "completed"
        assert [d.code for d in yes.asked] == ["approval_required"] * 2
        assert "could send it out" in yes.asked[0].reason

    asyncio.run(go())


def test_a_call_that_is_refused_marks_nothing(tree: Path) -> None:
    fields = policy("deny").model_dump(by_alias=True)
    fields["tools"]["rules"] = ({"tool": "read_file", "effect": "deny"},)

    async def go() -> None:
        wanted = Policy.model_validate(fields)
        async with Gateway(wanted, tree, audit_log=tree.parent / "log") as gateway:
            refused = await gateway.call("read_file", {"path": "private/note"})
            assert refused.reason == "policy_denied"
            assert (await gateway.call(*WRITE)).reason == "completed"

    asyncio.run(go())


def test_a_command_marks_by_its_connections(tree: Path) -> None:
    """The connections are as the egress gate reports them; that it does is tests/isolation/egress."""
    fields = load_policy("base").model_dump(by_alias=True)
    rule = {"after": {"host": "a.example"}, "then": {"tool": {"write_*": "deny"}}}
    wanted = Policy.model_validate({**fields, "flow": (rule,)})
    made = {"via": "direct", "name": "a.example", "address": "192.0.2.1", "port": 443}
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([], "completed"),
        ([{**made, "name": "b.example"}], "completed"),
        ([{**made, "reason": "host_denied"}], "completed"),
        ([{**made, "via": "loopback"}] * 500, "completed"),
        ([{**made, "name": "b.example"}, made], "flow_denied"),
    ]

    async def go() -> None:
        async with Gateway(wanted, tree, audit_log=tree.parent / "log") as gateway:
            for connections, reason in cases:

                async def run(call: Call, version: Version, facts: Any = connections) -> Ran:
                    return Ran(result=text_result(""), facts={"connections": facts})

                call = Call(tool="shell", arguments={"command": "curl"})
                await gateway.calls.call(call, gateway.version, run)
                assert (await gateway.call(*WRITE)).reason == reason
        assert '"was connected with a.example"' in (tree.parent / "log").read_text()

    asyncio.run(go())


def test_what_is_kept_is_bounded_and_forgetting_lets_nothing_out() -> None:
    flows = Flows(most_sessions=2)
    for number in range(100):
        flows.mark("c", str(number), {}, "id")
    assert dict(flows.of("c", "5")) == {}
    for session in ("1", "2"):
        flows.mark("c", session, {"rule": f"read {session}"}, "id")
    assert (dict(flows.of("c", "1")), dict(flows.of("c", "3"))) == (
        {"rule": "read 1 (call id)"},
        {},
    )
    flows.mark("c", "1", {"rule": "read again"}, "id")
    assert flows.of("c", "1")["rule"] == "read 1 (call id)"
    flows.mark("c", "3", {"other": "read 3"}, "id")
    assert len(flows._marks) == 2
    assert dict(flows.of("x", "9")) == {"rule": "or another one read 2 (call id)"}
