"""`always`: one entry more in the user's file, and not a character else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from purplebox.policies import PolicyError, PolicySource, decide, load_policy
from purplebox.policies.amend import approve_always

ARGUMENTS = {"command": "git push", "n": 3, "deep": {"é": ["a\u200b", None, True, "\U0001f600"]}}
ASKING = "{tool: shell, effect: ask, reason: a person decides}"
FILES = {
    "no tools": "name: p  # mine\n# a note\n",
    "no end of line": "name: p",
    "block": "# first\nname: p\ntools:\n  # why\n  default: allow   # yes\n  rules: [" + ASKING + "]\n# end\n",
    "list": "name: p\ntools:\n  approved:\n    # earlier\n    - {tool: x, arguments: {}}\n  default: ask\n",
    "list at the margin": "name: p\ntools:\n  approved:\n  - tool: x\n    arguments: {}  # none\n",
    "flow": "name: p\ntools: {default: ask}  # short\n",
    "flow, empty": "name: p\ntools: {}\n",
    "flow list": "name: p\ntools: {approved: [], default: ask}\n",
    "flow list, filled": "name: p\ntools: {approved: [{tool: x, arguments: {}}]}\n",
    "all flow": "{name: p, description: d}\n",
    "windows": "name: p\r\ntools:\r\n  default: ask\r\n",
}  # fmt: skip


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_everything_else_in_the_file_stays(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(text.encode())
    path.chmod(0o640)
    amendment = approve_always(PolicySource(name=str(path)), "shell", "", ARGUMENTS)
    assert path.read_bytes() == text.encode()
    amendment.write()
    assert path.stat().st_mode & 0o777 == 0o640
    written = path.read_bytes().decode()
    assert written.isascii() or not text.isascii()
    assert amendment.added in written
    kept = iter(written)
    assert all(character in kept for character in text.rstrip("\n"))
    policy = load_policy(str(path))
    approved = policy.tools.approved
    assert any(a.tool == "shell" and a.model_dump()["arguments"].keys() == ARGUMENTS.keys() for a in approved)  # fmt: skip
    asking = policy.model_copy(update={"tools": policy.tools.model_copy(update={"default": "ask", "rules": ()})})  # fmt: skip
    assert decide(asking, tool="shell", args=ARGUMENTS).rule.startswith("tools.approved[")
    assert decide(asking, tool="shell", args={**ARGUMENTS, "n": 4}).effect == "ask"
    assert decide(asking, tool="shell", args=ARGUMENTS, server="other").effect == "ask"
    assert os.listdir(tmp_path) == ["p.yaml"] or sorted(os.listdir(tmp_path)) == ["home", "p.yaml"]


def test_a_shipped_profile_is_extended_by_one_of_the_same_name(private_home: Path) -> None:
    source = PolicySource(name="code-assistant")
    before = source.load()
    shipped, origin = source.locate()
    assert origin == "shipped"
    text = shipped.read_text()
    amendment = approve_always(source, "shell", "", {"command": "git push"})
    assert amendment.path == private_home / "config" / "purple" / "profiles" / "code-assistant.yaml"
    amendment.write()
    assert shipped.read_text() == text
    after = source.load()
    assert source.locate() == (amendment.path, "user")
    assert after.filesystem == before.filesystem
    assert [a.arguments for a in after.tools.approved] == [{"command": "git push"}]
    approve_always(source, "shell", "", {"command": "git pull"}).write()
    assert len(source.load().tools.approved) == 2


def test_a_denial_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\ntools:\n  default: ask\n  rules: [{tool: shell, effect: deny, when: 'args.n == 1'}]\n"
    )
    for n in (1, 2):
        approve_always(PolicySource(name=str(path)), "shell", "", {"n": n}).write()
    policy = load_policy(str(path))
    assert decide(policy, tool="shell", args={"n": 1}).effect == "deny"
    assert decide(policy, tool="shell", args={"n": 2}).effect == "allow"
    assert decide(policy, tool="shell", args={"n": 3}).effect == "ask"


@pytest.mark.parametrize(
    "text",
    [
        "name: p\ntools:\n",
        "name: p\ntools: &t {default: ask}\ndescription: x\n...\n",
        "name: p\ntools: {approved: }\n",
        "- a\n",
    ],
)
def test_what_cannot_be_added_to_safely_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    try:
        approve_always(PolicySource(name=str(path)), "shell", "", {"n": 1}).write()
    except PolicyError:
        assert path.read_text() == text
    else:
        assert yaml.safe_load(path.read_text())["tools"]["approved"]


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\n")
    amendment = approve_always(PolicySource(name=str(path)), "shell", "", {"n": 1})
    path.write_text("name: p\ndescription: new\n")
    with pytest.raises(PolicyError, match="changed meanwhile"):
        amendment.write()
    assert path.read_text() == "name: p\ndescription: new\n"


def test_numbers_that_yaml_reads_otherwise_and_long_calls_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\n")
    for arguments in ({"n": 1e22}, {"text": "x" * 5000}):
        with pytest.raises(PolicyError):
            approve_always(PolicySource(name=str(path)), "shell", "", arguments)


def test_a_profile_that_extends_itself_alone_is_still_refused(private_home: Path) -> None:
    directory = private_home / "config" / "purple" / "profiles"
    directory.mkdir(parents=True)
    (directory / "mine.yaml").write_text("name: mine\nextends: mine\n")
    with pytest.raises(PolicyError, match="extends itself"):
        load_policy("mine")
