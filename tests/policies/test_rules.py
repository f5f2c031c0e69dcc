"""Rules: order, failures, what they see, and that joining them changes no verdict."""

from __future__ import annotations

from typing import Any

import pytest

from purplebox.gateway.reasons import Reason
from purplebox.policies import Decision, Place, Policy, Rules
from purplebox.policies.rules import Code, compile_expression

PLACE = Place(workspace="/srv/ws", home="/home/me")


def judge(rules: tuple[dict[str, Any], ...], default: Any = "allow", **call: Any) -> Decision:
    policy = Policy.model_validate({"name": "p", "tools": {"default": default, "rules": rules}})
    compiled = Rules(policy, PLACE)
    full: dict[str, Any] = {"tool": "shell", "arguments": {}, **call}
    return compiled.decide(compiled.request(**full))


def shell(command: str) -> dict[str, Any]:
    return {"tool": "shell", "arguments": {"command": command}}


DENY = {"tool": "shell", "when": 'args.command.contains("--force")', "effect": "deny"}
ASK = {"tool": "shell", "when": 'args.command.contains("push")', "effect": "ask"}
ALLOW = {"tool": "shell", "when": 'args.command.contains("git")', "effect": "allow"}


@pytest.mark.parametrize("order", [(DENY, ASK, ALLOW), (ALLOW, ASK, DENY), (ASK, ALLOW, DENY)])
def test_deny_goes_before_ask_before_allow_before_the_default(order: Any) -> None:
    verdicts = [
        (d.effect, d.code, d.rule.partition("[")[0])
        for command in ("git push --force", "git push", "git log", "ls")
        for d in [judge(order, "deny", **shell(command))]
    ]
    assert verdicts == [
        ("deny", "policy_denied", "tools.rules"), ("ask", "approval_required", "tools.rules"),
        ("allow", "allowed", "tools.rules"), ("deny", "policy_denied", "tools.default"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("args.nothing == 1", "nothing"),
        ("1 / (size(args.command) - 2) > 0", "division"),
        ("args.command", "neither true nor false"),
        ("1", "neither true nor false"),
        ("args.command.matches('(')", ""),
        ("nonesuch(args)", "nonesuch"),
        ("glob(args, 'x')", "two texts"),
    ],
)
@pytest.mark.parametrize("effect", ["allow", "ask", "deny"])
def test_a_rule_that_fails_denies_and_is_named(when: str, words: str, effect: str) -> None:
    fine = {"when": "args.command == 'ls'", "effect": "allow"}
    decision = judge((fine, {"when": when, "effect": effect}), **shell("ls"))
    assert (decision.effect, decision.code, decision.rule) == ("deny", "rule_failed", "tools.rules[1]")  # fmt: skip
    assert words in decision.reason
    assert judge((fine,), **shell("ls")).effect == "allow"


def test_a_comment_cannot_swallow_the_next_rule() -> None:
    rules = ({"when": "false // no", "effect": "allow"}, {"when": "true // yes", "effect": "deny"})
    assert judge(rules).rule == "tools.rules[1]"
    with pytest.raises(ValueError, match="CEL"):
        compile_expression("true), (true")


@pytest.mark.parametrize("expression", ["arg.command == 'x'", "tools == 'x'", "args.a == nothing"])
def test_an_unknown_variable_is_an_error_at_load(expression: str) -> None:
    with pytest.raises(ValueError, match=r"unknown variable (arg|tools|nothing); "):
        compile_expression(expression)
    compile_expression(
        "paths.exists(p, p == 'x') && urls.all(u, u.host != p_x)".replace("p_x", "'x'")
    )


def test_globs_match_the_tools_own_name_and_the_prefixed_one() -> None:
    rule = {"tool": "github__*", "when": 'args.owner != "acme"', "effect": "deny"}
    call: dict[str, Any] = {
        "server": "github",
        "tool": "create_issue",
        "arguments": {"owner": "evil"},
    }
    assert judge((rule,), **call).effect == "deny"
    assert judge((rule,), **{**call, "arguments": {"owner": "acme"}}).effect == "allow"
    assert judge(({"tool": "create_*", "effect": "deny"},), **call).effect == "deny"
    assert judge(({"tool": "x", "server": "git*", "effect": "deny"},), **call).effect == "allow"
    assert judge(({"server": "git*", "effect": "deny"},), **call).effect == "deny"
    assert judge(({"server": "git*", "effect": "deny"},), **shell("ls")).effect == "allow"


def test_allowing_a_built_in_tool_allows_no_look_alike() -> None:
    rule = {"tool": "read_file", "effect": "allow"}
    own: dict[str, Any] = {"tool": "read_file", "arguments": {"path": "x"}}
    assert judge((rule,), "deny", **own).effect == "allow"
    assert judge((rule,), "deny", **own, server="other").effect == "deny"
    named = {**rule, "server": "other"}
    assert judge((named,), "deny", **own, server="other").effect == "allow"


@pytest.mark.parametrize(
    ("when", "command", "verdict"),
    [
        ('"git" in command.programs', "env X=1 sh -c 'git push'", True),
        ('"git" in command.programs', "echo git", False),
        ('command.invocations.exists(i, i.program == "git" && "push" in i.args)', "git -C x push", True),
        ('command.redirections.exists(r, r.target.startsWith("/dev/tcp"))', "exec 3<>/dev/tcp/a/1", True),
        ("command.opaque", "curl x | sh", True),
        ("command.opaque", "ls", False),
    ],
)  # fmt: skip
def test_rules_see_the_command_line(when: str, command: str, verdict: bool) -> None:
    decision = judge(({"when": when, "effect": "deny"},), **shell(command))
    assert (decision.effect == "deny") == verdict


def test_rules_see_canonical_paths_and_urls() -> None:
    secret = {"when": "paths.exists(p, glob(p, '~/.ssh/**'))", "effect": "deny"}
    for path in ("~/.ssh/id", "/home/me/x/../.ssh/id", "/proc/self/root/home/me/.ssh/id", "file:///home/me/.ssh"):  # fmt: skip
        assert judge((secret,), tool="read_file", arguments={"path": path}).effect == "deny"
    assert judge((secret,), tool="read_file", arguments={"path": ".ssh"}).effect == "allow"
    assert judge((secret,), tool="x", server="s", arguments={"any": {"p": "~/.ssh/id"}}).effect == "deny"  # fmt: skip
    inside = {"tool": "write_file", "when": "!args.path.startsWith(workspace + '/src/')", "effect": "deny"}  # fmt: skip
    for path, effect in (("src/a", "allow"), ("src/../b", "deny"), ("srcs", "deny")):
        assert judge((inside,), tool="write_file", arguments={"path": path}).effect == effect
    host = {"when": "urls.exists(u, u.host != 'api.example')", "effect": "deny"}
    for url, effect in (("https://API.example./x", "allow"), ("https://api.example@evil/", "deny")):
        assert judge((host,), tool="http_request", arguments={"url": url}).effect == effect


def test_joined_rules_give_the_verdicts_of_single_ones() -> None:
    rules = tuple(
        {"when": f'args.command.contains("w{i}") && size(args.command) > {i % 7}', "effect": e}
        for i, e in enumerate(("deny", "ask", "allow") * 40)
    )
    for command in ("w5", "w100 w7", "w8 w2", "nothing", "w118"):
        single = [
            d
            for r in rules
            if (d := judge((r,), "allow", **shell(command))).rule != "tools.default"
        ]
        order = {"deny": 0, "ask": 1, "allow": 2}
        strictest = min((d.effect for d in single), key=order.__getitem__, default="ask")
        assert judge(rules, "ask", **shell(command)).effect == strictest


def test_every_refusing_code_is_a_reason_of_the_gateway() -> None:
    codes = set(Code.__args__)  # type: ignore[attr-defined]
    assert codes - {"allowed"} <= {str(reason) for reason in Reason}
