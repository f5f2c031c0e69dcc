"""Calls get what their arguments need; rules on paths hold against symbolic links."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.calls import Call, Outcome, Ran, Version, text_result
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")


def with_rules(*rules: dict[str, Any]) -> Policy:
    tools = {"rules": rules}
    return BASE.model_copy(update={"tools": type(BASE.tools).model_validate(tools)})


SECRET = {
    "when": "paths.exists(p, glob(p, '**/secret/**'))", "effect": "deny", "reason": "secret",
}  # fmt: skip


@pytest.fixture
def tree(workspace: Path) -> Path:
    (workspace / "secret").mkdir()
    (workspace / "secret/key").write_text("s3cret")
    (workspace / "plain").write_text("plain")
    (workspace / "link").symlink_to("secret/key")
    (workspace / "dir").symlink_to("secret")
    (workspace / "fine").symlink_to("plain")
    return workspace


def call(policy: Policy, workspace: Path, tool: str, **arguments: Any) -> Outcome:
    with Gateway(policy, workspace, audit_log=workspace.parent / "log").sync() as gateway:
        return gateway.call(tool, arguments)


@pytest.mark.parametrize("path", ["link", "dir/key", "./dir/../secret/key", "/proc/self/cwd/link"])
@pytest.mark.parametrize("tool", ["read_file", "edit_file", "search_text"])
def test_a_rule_on_a_path_holds_against_links(tree: Path, path: str, tool: str) -> None:
    more = {
        "read_file": {}, "edit_file": {"old_text": "s3", "new_text": "x"},
        "search_text": {"pattern": "s3"},
    }[tool]  # fmt: skip
    outcome = call(with_rules(SECRET), tree, tool, path=path, **more)
    assert (outcome.reason, outcome.decision.rule) == ("policy_denied", "tools.rules[0]")
    assert (tree / "secret/key").read_text() == "s3cret"
    if tool != "edit_file":
        assert "s3cret" in call(BASE, tree, tool, path=path, **more).text


def test_a_link_to_what_is_allowed_is_followed_and_named(tree: Path) -> None:
    outcome = call(with_rules(SECRET), tree, "read_file", path="fine")
    assert outcome.content is not None
    assert (outcome.content["content"], outcome.content["path"]) == ("plain", "plain")
    assert call(with_rules(SECRET), tree, "write_file", path="fine", content="new").content
    assert ((tree / "plain").read_text(), (tree / "fine").is_symlink()) == ("new", True)


def test_searching_a_directory_finds_nothing_through_its_links(tree: Path) -> None:
    (tree / "open").mkdir()
    (tree / "open/link").symlink_to("../secret/key")
    outcome = call(with_rules(SECRET), tree, "search_text", path="open", pattern="s3cret")
    assert outcome.content is not None
    assert outcome.content["matches"] == []
    found = call(BASE, tree, "search_text", path="secret", pattern="s3cret").content
    assert found is not None
    assert len(found["matches"]) == 1


def test_the_record_has_what_a_call_was_granted(tree: Path) -> None:
    call(BASE, tree, "read_file", path="fine")
    end = json.loads((tree.parent / "log").read_text().splitlines()[-1])
    grant = end["grant"]
    assert (grant["scope"], grant["read"], grant["write"]) == ("call", [f"{tree}/plain"], [])
    assert grant["landlock_abi"] >= 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"path": "plain"}, "completed"), ({"path": "/srv/none"}, "outside_grant"),
        ({"path": "away"}, "outside_grant"), ({"undeclared": "/srv/none"}, "completed"),
    ],
)  # fmt: skip
def test_a_server_is_not_told_of_what_lies_outside(tree: Path, arguments: dict[str, Any], reason: str) -> None:  # fmt: skip
    (tree / "away").symlink_to("/srv/none")
    tools = type(BASE.tools).model_validate({"arguments": {"s__*": {"path": "read"}}})
    policy = BASE.model_copy(update={"tools": tools})
    told: list[Any] = []

    async def run(call: Call, version: Version) -> Ran:
        told.append(call.arguments)
        return Ran(result=text_result("done"))

    async def go() -> Outcome:
        async with Gateway(policy, tree, audit_log=tree.parent / "log") as gateway:
            call = Call(tool="get", server="s", arguments=arguments)
            return await gateway.calls.call(call, gateway.version, run)

    outcome = asyncio.run(go())
    assert outcome.reason == reason
    assert len(told) == (reason == "completed")
    if reason != "completed":
        assert "outside what policy base grants" in outcome.text


def test_a_move_from_one_mount_to_another_copies(tree: Path) -> None:
    (tree / ".git").mkdir()  # what is protected in it makes it a mount of its own
    for name in ("config", "description"):
        (tree / ".git" / name).write_text(name)
    (tree / ".git/dir").mkdir()
    (tree / ".git/dir/x").write_text("x")
    for source, target in (("description", "moved"), ("dir", "new")):
        outcome = call(BASE, tree, "move", source=f".git/{source}", destination=target)
        assert outcome.content == {"source": f".git/{source}", "destination": target}
    assert (tree / "moved").read_text() == "description"
    assert (tree / "new/x").read_text() == "x"
    assert sorted(path.name for path in (tree / ".git").iterdir()) == ["config"]
