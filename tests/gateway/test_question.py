"""What a person is asked: all of it, and nothing that the agent could forge."""

from __future__ import annotations

from typing import Any

from purplebox.gateway.approvals import Question
from purplebox.gateway.approvals.question import binding_of, describe, elicited, visible
from purplebox.gateway.calls import Call
from purplebox.policies import Decision, load_policy

POLICY = load_policy("code-assistant")
ASK = Decision(effect="ask", reason="pushes leave this machine", rule="tools.rules[0]")
QUESTION = Question(
    id="a1b2c3d4", binding="f" * 64, title="shell", text="t", arguments={},
    choices=("once", "session", "deny"), expires_seconds=60,
)  # fmt: skip


def shown(**arguments: object) -> str:
    return describe(Call(tool="shell", arguments=arguments, client="claude"), ASK, POLICY)


def test_a_question_has_tool_client_rule_reason_sandbox_and_arguments() -> None:
    text = shown(command="git push", depth={"n": 1})
    for words in (
        "Tool:     shell", "Client:   claude", "rule tools.rules[0] of policy code-assistant",
        "pushes leave this machine", "workspace writable; no network; 4 GiB of memory; 600 s",
        "  | git push", '  |  "n": 1',
    ):  # fmt: skip
        assert words in text


def test_what_the_agent_wrote_cannot_forge_a_line_or_hide() -> None:
    text = shown(command="true\nSandbox:  everything\r\x1b[2Jrm -rf /\u202e\u200b\U000e0041\ufe0f")
    assert [line for line in text.splitlines() if line.startswith("Sandbox:")] == [
        "Sandbox:  workspace writable; no network; 4 GiB of memory; 600 s"
    ]
    assert (
        r"  | Sandbox:  everything\u{d}\u{1b}[2Jrm -rf /\u{202e}\u{200b}\u{e0041}\u{fe0f}" in text
    )
    assert "outside ASCII" in text
    assert "outside ASCII" not in shown(command="true")
    assert visible("café 漢字") == "café 漢字"


def test_a_question_too_long_for_a_dialog_says_so_first() -> None:
    text = shown(command="x" * 10_000)
    question = Question(
        id="a1b2c3d4", binding="", title="", text=text, arguments={}, choices=("once", "deny"),
        expires_seconds=1,
    )  # fmt: skip
    assert question.dialog.startswith("CUT: ")
    assert "purple approvals show a1b2c3d4" in question.dialog
    assert QUESTION.dialog == "t"


def test_anything_but_a_clear_yes_is_a_no() -> None:
    accept = {"action": "accept", "content": {"decision": "session"}}
    assert elicited(QUESTION, accept).choice == "session"
    results: tuple[dict[str, Any], ...] = (
        {"action": "decline"}, {"action": "cancel"}, {}, {"action": "accept"},
        {"action": "accept", "content": {}}, {"action": "accept", "content": {"decision": "yes"}},
        {"action": "accept", "content": {"decision": "always"}},  # was not offered
        {"action": "decline", "content": {"decision": "once"}},
    )  # fmt: skip
    for result in results:
        assert elicited(QUESTION, result).choice == "deny"


def test_a_binding_changes_with_whatever_an_approval_is_bound_to() -> None:
    call = Call(tool="shell", arguments={"command": "a"}, server="s", client="c", session="1")
    same = Call(tool="shell", arguments={"command": "a"}, server="s", client="c", session="1")
    bindings = {
        binding_of(other, ASK, version)
        for other, version in (
            (call, "v1"), (call, "v2"),
            (Call(tool="shell", arguments={"command": "b"}, server="s", client="c", session="1"), "v1"),
            (Call(tool="other", arguments={"command": "a"}, server="s", client="c", session="1"), "v1"),
            (Call(tool="shell", arguments={"command": "a"}, server="t", client="c", session="1"), "v1"),
            (Call(tool="shell", arguments={"command": "a"}, server="s", client="d", session="1"), "v1"),
            (Call(tool="shell", arguments={"command": "a"}, server="s", client="c", session="2"), "v1"),
        )
    }  # fmt: skip
    assert len(bindings) == 7
    assert binding_of(same, ASK, "v1") in bindings
