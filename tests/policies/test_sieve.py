"""Rules that are settled without CEL are settled as CEL would."""

from __future__ import annotations

from typing import Any

import cel
import pytest

from purplebox.policies import Place, Policy, Rules
from purplebox.policies.sieve import Sieve

# Each with whether the sieve understands it.
EXPRESSIONS = {
    'args.a.contains("x")': True,
    "args.a.startsWith('x') && args.b == 'y'": True,
    'args.a.endsWith( "x" ) && size(args.nothing) > 1': True,
    'args.b == "y" && args.a.contains("x")': True,
    '(args.a.contains("x")) && args.b == "y"': True,
    'args.a == ""': True,
    '[1].exists(args, args == 1) && args.a.contains("x")': True,
    'args.a.contains("&& x") && args.b == "(y"': True,
    'args.a.contains("é")': True,
    'args.a.contains("")': False,  # it is never false
    'args.a.contains("x") || args.b == "y"': False,
    'args.a.contains("x") ? true : false': False,
    '!args.a.contains("x")': False,
    'args.a.contains("\\\\")': False,
    "args.a.contains('''x''')": False,
    'args.a.contains(r"x")': False,
    'args.a.contains("x") // && false': False,
    '"x" == args.a': False,
}
VALUES: list[Any] = ["", "x", "xx", "yx", "xy", "&& x", "\\", "é", "e\u0301", "\ud800x", 1, None, ["x"], True]  # fmt: skip


def evaluated(text: str, arguments: dict[str, Any]) -> object:
    try:
        return cel.compile(text).execute({"args": arguments})
    except Exception:
        return "failed"


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_what_is_dropped_is_false(text: str) -> None:
    sieve = Sieve([text], is_shell=True)
    rules = Rules(Policy(name="p"), Place(workspace="/w"))
    dropped = 0
    for a in VALUES:
        for b in ("y", "(y", "", 1):
            arguments: dict[str, Any] = {"a": a, "b": b}
            request = rules.request(tool="tool", arguments=arguments, server="s")
            if sieve.left(request) == []:
                dropped += 1
                if a == "\ud800x":  # arguments that CEL cannot take deny anyway: the next test
                    continue
                assert evaluated(text, arguments) is False, (text, arguments)
    assert (dropped > 0) == EXPRESSIONS[text]


@pytest.mark.parametrize(
    "command",
    ["git push", "g'it' push", "gi\\t push", "echo git", "$X push", "env git x", "/bin/git", "echo 'git'"],
)  # fmt: skip
def test_programs_are_found_as_by_the_parser(command: str) -> None:
    text = '"git" in command.programs'
    policy = Policy.model_validate(
        {"name": "p", "tools": {"rules": ({"when": text, "effect": "deny"},)}}
    )
    compiled = Rules(policy, Place(workspace="/w"))
    request = compiled.request(tool="shell", arguments={"command": command})
    assert (compiled.decide(request).effect == "deny") == ("git" in request.command.programs)


def test_arguments_that_cel_cannot_take_deny_whatever_is_looked_at() -> None:
    rule = {"when": 'args.a.contains("x")', "effect": "deny"}
    policy = Policy.model_validate({"name": "p", "tools": {"rules": (rule,)}})
    compiled = Rules(policy, Place(workspace="/w"))
    for value, code in (("\ud800", "rule_failed"), ("\u00e9", "allowed")):
        request = compiled.request(tool="t", server="s", arguments={"a": "y", "other": value})
        assert compiled.decide(request).code == code, value
