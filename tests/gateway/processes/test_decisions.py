"""What a policy says of processes in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from purplebox.gateway.tools import TOOLS
from purplebox.policies import load_policy

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.anyio

BASE = load_policy("base").model_dump(by_alias=True)
PUSH = {"tool": "shell", "when": 'args.command.contains("git push")', "effect": "deny", "reason": "no"}  # fmt: skip
LONG = {"wait_seconds": 60}  # at the most: it ends with the first line


async def test_none_where_the_policy_has_none(here: Here) -> None:
    ours = [name for name in TOOLS if name.startswith("process_")]
    resources = {**BASE["resources"], "background": 0}
    async with here.entered(here.policy(resources=resources)) as gateway:
        assert not {tool.name for tool in gateway.tools()} & set(ours)
        refused = await gateway.call("process_start", {"command": "true"})
        assert (refused.reason, "resources.background" in refused.text) == ("policy_denied", True)
    async with here.entered() as gateway:
        assert {tool.name for tool in gateway.tools()} >= set(ours)
    assert load_policy("strict").resources.background == 0


async def test_what_is_denied_for_shell_is_denied_here(here: Here) -> None:
    async with here.entered(here.policy(tools={"rules": (PUSH,)})) as gateway:
        told = [
            await gateway.call("shell", {"command": "git push"}),
            await gateway.call("process_start", {"command": "git push"}),
        ]
        id = await here.start(gateway, "sh")
        told.append(await gateway.call("process_input", {"process_id": id, "input": "git push\n"}))
        assert [(o.reason, o.decision.rule) for o in told] == [
            ("policy_denied", "tools.rules[0]")
        ] * 3  # fmt: skip
        allowed = await gateway.call(
            "process_input", {"process_id": id, **LONG, "input": "echo ok\n"}
        )
        assert here.content(allowed)["output"] == "ok\n"


async def test_what_is_allowed_for_shell_is_not_allowed_here(here: Here) -> None:
    only = {"tool": "shell", "effect": "allow"}
    own = {"tool": "process_*", "effect": "allow"}
    async with here.entered(here.policy(tools={"default": "deny", "rules": (only,)})) as gateway:
        assert (await gateway.call("shell", {"command": "true"})).reason == "completed"
        refused = await gateway.call("process_start", {"command": "true"})
        assert (refused.reason, refused.decision.rule) == ("policy_denied", "tools.default")
    async with here.entered(here.policy(tools={"default": "deny", "rules": (own,)})) as gateway:
        assert (await gateway.call("process_start", {"command": "true"})).reason == "completed"


async def test_an_approval_for_good_is_for_this_tool_too(here: Here) -> None:
    ask = {**PUSH, "effect": "ask"}
    approved = {"tool": "process_start", "arguments": {"command": "echo git push"}}
    held = here.policy(tools={"rules": (ask,), "approved": (approved,)})
    async with here.entered(held) as gateway:
        allowed = await gateway.call("process_start", {"command": "echo git push"})
        assert allowed.decision.rule == "tools.approved[0]"
        asked = await gateway.call("process_start", {"command": "git push"})
        assert asked.reason == "approval_required"
        assert (await gateway.call("shell", {"command": "echo git push"})).reason == "approval_required"  # fmt: skip


async def test_a_limit_on_shell_counts_these(here: Here) -> None:
    limit = {"tool": "shell", "calls": 2, "every": "1h"}
    async with here.entered(here.policy(limits=(limit,))) as gateway:
        await gateway.call("shell", {"command": "true"})
        await gateway.call("process_start", {"command": "true"})
        for tool in ("shell", "process_start"):
            assert (await gateway.call(tool, {"command": "true"})).reason == "rate_limited"
        assert (await gateway.call("process_list")).reason == "completed"
