"""Every code is one of the enum, explained, documented, and carried by its refusal."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from purplebox import Gateway
from purplebox.gateway import reasons
from purplebox.gateway.calls import REFUSAL, Approval, Call, Version
from purplebox.gateway.reasons import CONNECTIONS, MEANINGS, Reason
from purplebox.policies import Decision, Policy, load_policy
from purplebox.policies.hosts import Why

ROOT = Path(__file__).parents[2]


def test_every_code_is_explained_once() -> None:
    assert list(MEANINGS) == list(Reason)
    assert list(CONNECTIONS) == [why for why in Why if why]
    codes = [*map(str, Reason), *(str(why) for why in Why if why)]
    assert len(set(codes)) == len(codes)


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "reasons.md").read_text() == reasons.page()


def test_no_other_code_is_made_up() -> None:
    known = {*map(str, Reason), *map(str, Why)}
    for source in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "policies").rglob("*.py")]:
        for code in re.findall(r'\bcode="(\w+)"', source.read_text()):
            assert code in known, f"{source}: {code}"


class Person:
    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        return Approval(allowed=False, by="test", reason=self.reason)


def test_refusals_carry_code_rule_and_both_sentences(workspace: Path) -> None:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    rules = (
        {"tool": "delete", "effect": "deny", "reason": "nothing is deleted"},
        {"tool": "move", "effect": "ask", "reason": "a person decides"},
        {"tool": "find_files", "when": "args.missing == 1", "effect": "deny"},
    )
    policy = Policy.model_validate({**base, "name": "p", "tools": {"rules": rules}})
    calls = {
        ("delete", "path"): Reason.POLICY_DENIED, ("move", "source"): Reason.APPROVAL_TIMED_OUT,
        ("find_files", "pattern"): Reason.RULE_FAILED, ("nothing", "x"): Reason.UNKNOWN_TOOL,
        ("read_file", "wrong"): Reason.INVALID_ARGUMENTS,
    }  # fmt: skip

    async def go() -> None:
        approver = Person(Reason.APPROVAL_TIMED_OUT)
        async with Gateway(
            policy, workspace, audit_log=workspace.parent / "log", approver=approver
        ) as gateway:
            for (tool, argument), reason in calls.items():
                arguments = {argument: "a"} | ({"destination": "b"} if tool == "move" else {})
                outcome = await gateway.call(tool, arguments)
                told = outcome.result["_meta"][REFUSAL]
                assert outcome.reason == told["reason"] == reason
                assert told["rule"]
                assert told["person"] == MEANINGS[reason][1]
                assert len(outcome.text) > 20
                assert "retry_seconds" not in told

    asyncio.run(go())
