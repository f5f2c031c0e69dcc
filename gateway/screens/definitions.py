"""What servers say of themselves: lists of tools, prompts and resources, instructions, and the rest."""

from __future__ import annotations

import sys
from typing import Any

from ..wire.jsonrpc import is_object, list_of, object_of
from .screen import Findings, Screen, noted

# Method, and the member of its result that holds the items.
LISTS = {
    "tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}  # fmt: skip
_MOST_SAID = 1000
_said: set[str] = set()  # a list is asked for often; what is in it is said once


class Withheld(Exception):
    """The policy hands nothing of it on; the text is for the client."""


def listed(screen: Screen, server: str, method: str, result: dict[str, Any]) -> dict[str, Any]:
    """A list's result: items screened one by one, those that the policy withholds left out."""
    whole = Findings()
    screen.value(result, whole)
    if not whole:
        return result
    member = LISTS[method]
    kept: list[Any] = []
    for item in list_of(result.get(member)):
        findings = Findings()
        screened = screen.value(item, findings)
        if findings:
            name = object_of(item).get("name") or object_of(item).get("uri")
            held = screen.withholds(findings)
            _say(server, f"{method}: {name}: {findings.sentence()}{'; left out' * held}")
            if held:
                continue
            if is_object(screened):
                screened = noted(screened, findings)
        kept.append(screened)
    rest = screen.value({k: v for k, v in result.items() if k != member}, Findings())
    return {**rest, member: kept}


def introduced(screen: Screen, server: str, said: dict[str, Any]) -> dict[str, Any]:
    """The result of `initialize` or `server/discover`; instructions are left out where withheld."""
    findings = Findings()
    screened: dict[str, Any] = screen.value(said, findings)
    if not findings:
        return said
    held = screen.withholds(findings) and "instructions" in screened
    _say(server, f"introduction: {findings.sentence()}{'; its instructions are left out' * held}")
    if held:
        screened = {k: v for k, v in screened.items() if k != "instructions"}
    return noted(screened, findings)


def passed(screen: Screen, what: str, value: Any) -> Any:
    """Anything else that a server sends towards a client. Raises `Withheld`."""
    findings = Findings()
    screened = screen.value(value, findings)
    if screen.withholds(findings):
        raise Withheld(screen.withheld(what, findings))
    return noted(screened, findings) if is_object(screened) else screened


def _say(server: str, text: str) -> None:
    line = f"server {server}: {text}"[:1000]
    if line in _said:
        return
    if len(_said) >= _MOST_SAID:
        _said.clear()
    _said.add(line)
    clean = "".join(c if c.isprintable() else "�" for c in line)
    print(f"purple: {clean}", file=sys.stderr)
