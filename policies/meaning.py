"""What in a policy cannot mean anything: host patterns that name no host, globs that fit nothing,
expressions that can only fail. For `check`. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from .hosts import Hosts, host_pattern
from .request import BUILT_IN, names
from .rules import compile_expression

if TYPE_CHECKING:
    from .judging import ToolRule
    from .model import Network, Policy

# The arguments of the built-in tools, by which rules are judged.
ARGUMENTS = {
    "shell": ("command", "cwd", "timeout_seconds"),
    "process_start": ("command", "cwd", "timeout_seconds", "wait_seconds"),
    "process_output": ("process_id", "wait_seconds"),
    "process_input": ("process_id", "input", "close", "wait_seconds"),
    "process_stop": ("process_id", "force"),
    "process_list": (),
    "read_file": ("path", "offset", "limit"),
    "write_file": ("path", "content"),
    "edit_file": ("path", "old_text", "new_text", "replace_all"),
    "list_directory": ("path",),
    "find_files": ("pattern", "path"),
    "search_text": ("pattern", "path", "glob"),
    "move": ("source", "destination", "overwrite"),
    "delete": ("path", "recursive"),
    "http_request": (
        "url", "method", "headers", "body", "body_base64", "as", "save_to", "follow_redirects",
        "max_bytes", "timeout_seconds",
    ),
}  # fmt: skip
_NAMED = re.compile(
    r"""(?<![\w.])args\s*(?:\.\s*(?P<plain>\w+)|\[\s*(?P<quote>["'])(?P<quoted>\w+)(?P=quote)\s*\])"""
    r"""|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
)
# One of these calls of a function gets further than that there is none, if there is one.
_CALLS = (
    '{}("x")', "{}(1)", '"x".{}("x")', '"x".{}()', "[1].{}()", '{}("1h")', 'duration("1h").{}()',
    'timestamp("2020-01-01T00:00:00Z").{}()',
)  # fmt: skip
_UNDEFINED = "Undefined variable or function"


def hosts_without_meaning(network: Network) -> Iterator[tuple[str, str]]:
    """Key and text of each rule with which no sandbox starts."""
    for name, rules in (("allow", network.allow), ("deny", network.deny)):
        for index, rule in enumerate(rules):
            key = f"network.{name}[{index}]"
            try:
                Hosts(network.model_copy(update={"allow": (rule,), "deny": ()}))
            except ValueError as error:
                yield key, str(error).removeprefix("network.allow[0]").lstrip(".: ")
    for index, credential in enumerate(network.credentials):
        try:
            host_pattern(credential.host)
        except ValueError as error:
            yield f"network.credentials[{index}]", str(error)


def files_without_meaning(pattern: str) -> str:
    """Why a glob on files fits none that its author can have meant; "" where it may."""
    if pattern.startswith("!"):
        return f"{pattern}: a leading ! is part of the name; there are no exceptions, so name what is meant alone"
    # RCS calls its files `NAME,v`.
    if _braced(pattern) or ("," in pattern and not pattern.endswith(",v")):
        return f"{pattern}: globs know neither braces nor commas; write one pattern each: {_each(pattern)}"
    return ""


def tools_without_meaning(rule: ToolRule, policy: Policy) -> str:
    """Why a rule's glob on tools fits none; "" where it may."""
    pattern = rule.tool
    if pattern.startswith("!"):
        return (
            f"{pattern}: a leading ! is part of the name; name the tools that are meant, or all (*)"
        )
    if re.search(r"[,|{}\s]", pattern):
        return (
            f"{pattern}: globs know no braces, commas or |; write one rule each: {_each(pattern)}"
        )
    if rule.server != "*" or "__" in pattern or any(fnmatchcase(n, pattern) for n in BUILT_IN):
        return ""
    if any(fnmatchcase(n, pattern) or fnmatchcase(pattern, n) for n in _declared(policy)):
        return ""
    # Under `purple wrap` a server's own tools have no prefix: all that is no near miss may be one.
    near = difflib.get_close_matches(pattern, BUILT_IN, 1, 0.8)
    return f"there is no built-in tool {pattern}; did you mean {near[0]}?" if near else ""


def expression_without_meaning(rule: ToolRule) -> Iterator[str]:
    """Why a rule's condition can only fail, which denies."""
    try:
        functions: list[str] = compile_expression(rule.when).functions()
    except ValueError as error:
        yield str(error)
        return
    for name in functions:
        if re.fullmatch(r"[A-Za-z]\w*", name) and name != "glob" and not _is_function(name):
            near = difflib.get_close_matches(name, _METHODS, 1)
            yield f"Undefined function {name!r}{_meant(near)}"
    known = ARGUMENTS.get(rule.tool) if rule.server in ("*", "") else None
    if known is None:
        return
    for found in _NAMED.finditer(rule.when):
        name = found["plain"] or found["quoted"]
        if name and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            there = "" if near else f"; there are: {', '.join(known) or 'none'}"
            yield f"no argument {name!r} of {rule.tool}{_meant(near)}{there}"


_METHODS = ("contains", "startsWith", "endsWith", "matches", "size", "glob", "int", "string")


@cache
def _is_function(name: str) -> bool:
    import cel

    def gets_further(call: str) -> bool:
        try:
            cel.compile(call.format(name)).execute(cel.Context({}))
        except Exception as error:  # the library raises several kinds
            return _UNDEFINED not in str(error)
        return True

    return any(map(gets_further, _CALLS))


def _meant(near: list[str]) -> str:
    return f"; did you mean {near[0]}" if near else ""


def _declared(policy: Policy) -> Iterator[str]:
    """Names of other servers' tools that the policy has elsewhere, with the server's and without."""
    for glob in policy.tools.arguments:
        yield from (glob, glob.partition("__")[2] or glob)
    for call in policy.tools.approved:
        yield from names(call.tool, call.server)


def _braced(pattern: str) -> bool:
    return re.search(r"\{[^{}]*\}", pattern) is not None


def _each(pattern: str) -> str:
    """The patterns that one with braces, commas or bars is meant to be."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return "; ".join(piece for piece in re.split(r"[,|\s{}]+", pattern) if piece)
    before, after = pattern[: found.start()], pattern[found.end() :]
    return "; ".join(_each(f"{before}{piece.strip()}{after}") for piece in found[1].split(","))
