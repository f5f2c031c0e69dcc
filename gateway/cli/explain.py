"""`purple profile explain`: what would become of a call, without running it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import argparse

    from ...policies import Decision, Policy
    from ..call import Call


def add_parser(actions: Any) -> None:
    """Add the action to `purple profile`."""
    action: argparse.ArgumentParser = actions.add_parser(
        "explain", help="say what would become of a call, without running it",
        description="Prints the verdict on a call, the rule, its reason, and the sandbox that it "
        "would get. Nothing runs.",
    )  # fmt: skip
    action.add_argument("-p", "--profile", default="code-assistant", help="name or path")
    action.add_argument("--tool", required=True, help="the tool's own name")
    action.add_argument("--server", default="", help="of another server's tool: the server's name")
    action.add_argument("--args", default="{}", metavar="JSON", help="the call's arguments")
    action.add_argument("--client", default="", help="who asks, as rules see it")
    action.add_argument("--workspace", default=".", metavar="DIR")
    action.add_argument("--json", action="store_true", help="the same for programs")


def explain(args: argparse.Namespace) -> int:
    """Carry out the action. Raises `PolicyError`."""
    from ...isolation import SetupError, View
    from ...isolation.guard import Guard
    from ...isolation.plan import compile_plan
    from ...policies import CanonicalError, Rules, parse_json
    from ...policies.request import BUILT_IN
    from ..call import Call, place_of
    from ..calls import judge_call
    from . import fail
    from .policy import looked_at

    if not args.server and args.tool not in BUILT_IN:
        return fail(f"--tool: {_no_tool(args.tool, BUILT_IN)}")
    workspace = Path(args.workspace)
    policy = looked_at(args.profile, workspace)
    try:
        given: object = parse_json(args.args)
    except (CanonicalError, ValueError) as error:
        return fail(f"--args: {error}")
    if not isinstance(given, dict):
        return fail("--args: a call's arguments are a JSON object")
    arguments = cast("dict[str, Any]", given)
    try:
        plan = compile_plan(policy, workspace)
    except SetupError as error:
        return fail(f"no sandbox can be built under {policy.name}: {error}")
    view = View(policy, plan, Guard(plan.workspace, policy.filesystem.hide, ()))
    call = Call(tool=args.tool, arguments=arguments, server=args.server, client=args.client)
    rules = Rules(policy, place_of(policy, workspace))
    asked = call
    call, decision = judge_call(asked, rules, view)
    # What it would meet in a session that has set off every flow rule.
    _, then = judge_call(asked, rules, view, rules.flow.every())
    flow = "; ".join(
        [f"marks its session: {what}" for what in call.marks.values()]
        + ([f"{then.effect} ({then.rule}) once a session is marked"] if then != decision else [])
    )
    far = None if call.grant is None else view.beyond(call.grant)
    beyond = "" if far is None or decision.effect == "deny" else f"{far.text} (rule {far.rule})"
    notes = {"flow": flow, "but": beyond}
    show = _json if args.json else _text
    print(show(call, decision, policy, notes))
    return 0


def _no_tool(name: str, known: Iterable[str]) -> str:
    """Why there is none of that name, whose verdict nobody would ever get."""
    server, _, tool = name.partition("__")
    if tool:
        return f"another server's tool is named by both: --server {server} --tool {tool}"
    near = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."
    return (
        f"there is no built-in tool {name}{meant} Of another server's tool, name its --server, too"
    )


def _json(call: Call, decision: Decision, policy: Policy, notes: dict[str, str]) -> str:
    from ...policies.words import sandbox_words

    said: dict[str, Any] = {
        "policy": policy.name, "policy_version": policy.digest, "tool": call.tool,
        "server": call.server, "arguments": dict(call.arguments), "effect": decision.effect,
        "code": decision.code, "rule": decision.rule, "reason": decision.reason,
    }  # fmt: skip
    if decision.effect != "deny" and call.grant is not None:
        said["grant"] = call.grant.to_json()
        said["sandbox"] = sandbox_words(policy, call.grant)
        said["notes"] = {name: text for name, text in notes.items() if text}
    return json.dumps(said, indent=2, ensure_ascii=False)


def _text(call: Call, decision: Decision, policy: Policy, notes: dict[str, str]) -> str:
    from ...policies.words import sandbox_words
    from ..approvals.question import visible

    name = f"{call.server}: {call.tool}" if call.server else call.tool
    said = {
        "call": f"{name} {json.dumps(dict(call.arguments), ensure_ascii=False)}",
        "verdict": decision.effect,
        "reason": decision.reason,
        "rule": f"{decision.rule} of policy {policy.name}",
    }
    lines = [f"{label:9}{visible(text)}" for label, text in said.items()]
    if decision.effect == "deny" or call.grant is None:
        return "\n".join([*lines, "sandbox  none: it would not run"])
    lines.append("sandbox")
    words = sandbox_words(policy, call.grant) | {k: text for k, text in notes.items() if text}
    return "\n".join([*lines, *(f"  {k:9}{visible(text)}" for k, text in words.items())])
