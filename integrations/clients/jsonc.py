"""JSON as clients write it, edited in place: comments, order and spacing of all else stay.

Accepts what VS Code's and Zed's settings hold beside RFC 8259: `//` and `/* */` comments, commas
before a closing bracket, a byte order mark. No Python library edits such text and keeps it (those
that parse comments drop them), so this finds the spans of values and replaces or inserts text there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(r"(?:[ \t\r\n\ufeff]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_LINE_END = re.compile(r"(?:[ \t]*(?://[^\r\n]*|/\*[^\r\n]*?\*/))?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MAX_DEPTH = 100


class JsoncError(ValueError):
    """The text is no JSON; `line` is 1-based."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(kw_only=True)
class _Node:
    """A value's span; `members` of an object: key → (where its key starts, its value)."""

    start: int
    end: int
    value: Any
    members: dict[str, tuple[int, _Node]] = field(default_factory=dict[str, "tuple[int, _Node]"])


def loads(text: str) -> Any:
    """The value that `text` holds. Raises `JsoncError`."""
    return _parse(text).value


def edit(text: str, path: Sequence[str], value: Any | None) -> str:
    """Set the member at `path` to `value`, or remove it (None); objects on the way are made.

    Args:
        text: The document; empty counts as `{}`.
        path: Keys from the outermost object, at least one.
        value: Anything that JSON can hold but null.

    Returns:
        The new text; the same object when there is nothing to change.

    Raises:
        JsoncError: not JSON, or something on the way is no object.
    """
    if not text.strip("\ufeff \t\r\n"):
        text = "{}\n"
    node = _parse(text)
    for depth, key in enumerate(path):
        if not isinstance(node.value, dict):
            where = ".".join(path[:depth]) or "the document"
            raise JsoncError(f"{where} is no object", _line(text, node.start))
        if key not in node.members:
            if value is None:
                return text
            for inner in reversed(path[depth + 1 :]):
                value = {inner: value}
            return _insert(text, node, key, value, depth)
        start, child = node.members[key]
        if depth == len(path) - 1:
            if value is None:
                return _remove(text, node, start, child)
            if child.value == value:
                return text
            return text[: child.start] + _dump(value, text, depth + 1) + text[child.end :]
        node = child
    return text


def _insert(text: str, node: _Node, key: str, value: Any, depth: int) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    step = _indent(text)
    member = f"{json.dumps(key, ensure_ascii=False)}: {_dump(value, text, depth + 1)}"
    inner, outer = newline + step * (depth + 1), newline + step * depth
    if not node.members:
        inside = text[node.start + 1 : node.end - 1].rstrip()
        return text[: node.start + 1] + inside + inner + member + outer + text[node.end - 1 :]
    last = max(child.end for _, child in node.members.values())
    one_line = "\n" not in text[node.start : node.end]
    before = " " if one_line else inner
    comma = _skip(text, last)
    if text[comma] == ",":  # a trailing comma: what is added has one, too
        head, last, member = text[: comma + 1], comma + 1, member + ","
    else:
        head = text[:last] + ","
    behind = _LINE_END.match(text, last)  # a comment at the line's end belongs to its line
    comment = behind[0] if behind is not None and not one_line else ""
    return head + comment + before + member + text[last + len(comment) :]


def _remove(text: str, node: _Node, start: int, child: _Node) -> str:
    end, comma = child.end, -1
    if text[after := _skip(text, end)] == ",":
        end = after + 1
    elif before := [other.end for _, other in node.members.values() if other.end <= start]:
        comma = _skip(text, max(before))  # the last member: the comma before it goes, too
    while text[start - 1] in " \t":
        start -= 1
    rest = re.compile(r"[ \t]*\r?\n").match(text, end)
    if text[start - 1] == "\n" and rest is not None:  # it has lines of its own
        end = rest.end()
    if (
        len(node.members) == 1
        and not (text[node.start + 1 : start] + text[end : node.end - 1]).strip()
    ):
        start, end = node.start + 1, node.end - 1
    kept = text[:start] if comma < 0 else text[:comma] + text[comma + 1 : start]
    return kept + text[end:]


def _dump(value: Any, text: str, depth: int) -> str:
    step, newline = _indent(text), "\r\n" if "\r\n" in text else "\n"
    lines = json.dumps(value, indent=step, ensure_ascii=False).splitlines()
    return (newline + step * depth).join(lines)


def _indent(text: str) -> str:
    """One step of indentation as this text has it: its first indented line's."""
    match = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return match[1] if match else "  "


def _parse(text: str) -> _Node:
    node = _value(text, _skip(text, 0), 0)
    if (end := _skip(text, node.end)) != len(text):
        raise JsoncError("there is more after the end", _line(text, end))
    return node


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _value(text: str, at: int, depth: int) -> _Node:
    if depth > _MAX_DEPTH:
        raise JsoncError(f"nested more than {_MAX_DEPTH} deep", _line(text, at))
    first = text[at : at + 1]
    if first == "{":
        return _object(text, at, depth)
    if first == "[":
        return _array(text, at, depth)
    match = _STRING.match(text, at) or _LITERAL.match(text, at)
    if match is None:
        found = repr(first) if first else "the end"
        raise JsoncError(f"a value was expected, not {found}", _line(text, at))
    try:
        return _Node(start=at, end=match.end(), value=json.loads(match[0]))
    except ValueError as error:
        raise JsoncError(str(error), _line(text, at)) from None


def _object(text: str, at: int, depth: int) -> _Node:
    node = _Node(start=at, end=at, value={})
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        match = _STRING.match(text, at)
        if match is None:
            raise JsoncError("a key in double quotes was expected", _line(text, at))
        key: str = json.loads(match[0])
        if key in node.members:
            raise JsoncError(f"key {key!r} is there twice", _line(text, at))
        colon = _skip(text, match.end())
        if text[colon : colon + 1] != ":":
            raise JsoncError("':' was expected", _line(text, colon))
        child = _value(text, _skip(text, colon + 1), depth + 1)
        node.members[key] = (at, child)
        node.value[key] = child.value
        at = _next(text, child.end, "}")
    node.end = at + 1
    return node


def _array(text: str, at: int, depth: int) -> _Node:
    node = _Node(start=at, end=at, value=[])
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        child = _value(text, at, depth + 1)
        node.value.append(child.value)
        at = _next(text, child.end, "]")
    node.end = at + 1
    return node


def _next(text: str, at: int, closing: str) -> int:
    """Past the comma after a member, or at the closing bracket."""
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return _skip(text, at + 1)
    if text[at : at + 1] != closing:
        raise JsoncError(f"',' or '{closing}' was expected", _line(text, at))
    return at


def member(value: Any, path: Sequence[str]) -> Any:
    """The member of a parsed document at `path`; None where there is none."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]
