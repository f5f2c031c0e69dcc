"""`always`: the question shows what would be written, and the answer writes exactly that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from purplebox.gateway.approvals import Approvals, Callback, Question
from purplebox.gateway.calls import Call, Version
from purplebox.isolation.enforcement import Enforcement
from purplebox.policies import Decision, PolicySource

ASK = Decision(effect="ask", reason="pushes leave", rule="tools.rules[0]", code="approval_required")
CALL = Call(tool="shell", arguments={"command": "git push"}, session="s1")
TEXT = "# mine\nname: p\ntools:\n  # why\n  rules: [{tool: shell, effect: ask}]\n"


@pytest.fixture
def source(tmp_path: Path) -> PolicySource:
    path = tmp_path / "p.yaml"
    path.write_text(TEXT)
    return PolicySource(name=str(path))


def under(source: PolicySource) -> Version:
    engine = SimpleNamespace(enforcement=Enforcement(layers={}))
    return Version(policy=source.load(), engine=cast(Any, engine))


def test_what_is_shown_is_what_is_written(source: PolicySource, tmp_path: Path) -> None:
    asked: list[Question] = []

    def person(question: Question) -> str:
        asked.append(question)
        assert (tmp_path / "p.yaml").read_text() == TEXT
        return "always"

    approvals = Approvals([Callback(person)], source=source)
    version = under(source)
    approval = asyncio.run(approvals.approve(CALL, ASK, version))
    assert approval.allowed
    assert approval.facts["written"] == source.name
    entry = '{"tool": "shell", "arguments": {"command": "git push"}}'
    assert f"  + in {source.name}:\n  + tools.approved: {entry}" in asked[0].text
    assert asked[0].choices == ("once", "session", "always", "deny")
    assert (tmp_path / "p.yaml").read_text() == TEXT.replace(
        "  # why\n  rules", f"  # why\n  approved:\n    - {entry}\n  rules"
    )
    assert len(source.load().tools.approved) == 1
    # Before the policy has been read again the answer holds, too.
    assert asyncio.run(approvals.approve(CALL, ASK, version)).by == "session"


def test_a_shipped_profile_gets_a_file_that_is_shown_whole(private_home: Path) -> None:
    asked: list[Question] = []
    source = PolicySource(name="strict")

    def person(question: Question) -> str:
        asked.append(question)
        return "always"

    approvals = Approvals([Callback(person)], source=source)
    approval = asyncio.run(approvals.approve(CALL, ASK, under(source)))
    path = private_home / "config" / "purple" / "profiles" / "strict.yaml"
    assert approval.facts["written"] == str(path)
    assert "  + extends: strict\n" in asked[0].text
    assert all(f"  + {line}" in asked[0].text for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("call", "decision", "has_source"),
    [
        (CALL, ASK, False),
        (replace(CALL, arguments={"password": "x"}), ASK, True),
        (CALL, replace(ASK, rule="flow[0]"), True),
        (replace(CALL, arguments={"command": "x" * 9000}), ASK, True),
    ],
)
def test_it_is_not_offered_where_it_cannot_be_kept(
    call: Call, decision: Decision, has_source: bool, source: PolicySource, tmp_path: Path
) -> None:
    asked: list[Question] = []

    def person(question: Question) -> str:
        asked.append(question)
        return "always"

    approvals = Approvals([Callback(person)], source=source if has_source else None)
    approval = asyncio.run(approvals.approve(call, decision, under(source)))
    assert not approval.allowed  # what is not offered is no yes
    assert "always" not in asked[0].choices
    assert (tmp_path / "p.yaml").read_text() == TEXT


def test_a_file_that_changed_meanwhile_stays_and_the_call_runs_once(
    source: PolicySource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def person(_: Question) -> str:
        (tmp_path / "p.yaml").write_text("name: p\n")
        return "always"

    approvals = Approvals([Callback(person)], source=source)
    approval = asyncio.run(approvals.approve(CALL, ASK, under(source)))
    assert approval.allowed
    assert "changed meanwhile" in approval.facts["not_written"]
    assert "changed meanwhile" in capsys.readouterr().err
    assert (tmp_path / "p.yaml").read_text() == "name: p\n"
