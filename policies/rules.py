"""Tool-call rules: (tool, server, arguments) → Decision. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .model import Policy

Effect = Literal["allow", "ask", "deny"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict: what, why (for people and the model), and by which rule of which policy."""

    effect: Effect
    reason: str
    rule: str


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Any:
    """Compile a CEL expression. Raises `ValueError` with the parser's words."""
    import cel

    try:
        return cel.compile(text)
    except Exception as error:  # the library raises several kinds
        raise ValueError(f"not a CEL expression: {error}") from error


def decide(
    policy: Policy,
    *,
    tool: str,
    args: Mapping[str, Any],
    server: str = "",
    client: str = "",
    session: str = "",
) -> Decision:
    """Judge one call: deny before ask before allow, then the default.

    A rule whose expression fails, or gives anything but true or false, denies.
    """
    facts = {
        "tool": tool,
        "server": server,
        "args": dict(args),
        "client": client,
        "session": session,
    }
    matched: dict[str, Decision] = {}
    for index, rule in enumerate(policy.tools.rules):
        if not (fnmatchcase(tool, rule.tool) and fnmatchcase(server, rule.server)):
            continue
        name = f"tools.rules[{index}]"
        try:
            verdict = rule.when == "true" or compile_expression(rule.when).execute(facts)
        except Exception as error:
            return Decision(
                effect="deny", reason=f"the rule could not be evaluated: {error}", rule=name
            )
        if not isinstance(verdict, bool):
            return Decision(effect="deny", reason="the rule is neither true nor false", rule=name)
        if verdict:
            reason = rule.reason or f"{rule.effect} by rule"
            matched.setdefault(rule.effect, Decision(effect=rule.effect, reason=reason, rule=name))
    for effect in ("deny", "ask", "allow"):
        if effect in matched:
            return matched[effect]
    return Decision(effect=policy.tools.default, reason="no rule matched", rule="tools.default")
