"""Which rules a call may fit at all: what a rule's expression says of one text, looked at without CEL.

An evaluation costs about a microsecond, and most rules do not concern most calls. `a && b` is false where
`a` is, whatever becomes of `b` (cel-spec, "Logical Operators"); so where one of an expression's conjuncts
compares a text with a literal, a text that does not fit it settles the rule. What is not understood
here is left to CEL, as is everything about a value that is no text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .request import Request

_Kind = Literal["contains", "startsWith", "endsWith", "=="]
_LITERAL = r"""(?:"([^"\\\n]*)"|'([^'\\\n]*)')"""
_METHOD = re.compile(rf"args\.([A-Za-z_]\w*)\.(contains|startsWith|endsWith)\(\s*{_LITERAL}\s*\)")
_EQUAL = re.compile(rf"args\.([A-Za-z_]\w*)\s*==\s*{_LITERAL}")
_PROGRAM = re.compile(rf"{_LITERAL}\s+in\s+command\.programs")
# Without these a program's name is written as it is, so that nothing has to be parsed (commands.py).
_QUOTING = re.compile(r"""['"\\$`]""")
_COMMAND = "command"  # the argument of `shell` and `process_start`


class Sieve:
    """For one list of expressions.

    Args:
        expressions: Each has compiled.
        is_shell: Whether `command.programs` is about the argument `command`.
    """

    def __init__(self, expressions: Sequence[str], *, is_shell: bool) -> None:
        self._rest: list[int] = []  # nothing is known of these
        self._tests: dict[tuple[str, _Kind], list[tuple[int, str]]] = {}
        self._programs: list[tuple[int, str]] = []
        for index, text in enumerate(expressions):
            if not self._understand(index, text, is_shell):
                self._rest.append(index)

    def _understand(self, index: int, text: str, is_shell: bool) -> bool:
        for part in _conjuncts(text):
            if found := _METHOD.fullmatch(part):
                kind: _Kind = found[2]  # type: ignore[assignment]  # the pattern has no others
                literal = found[3] if found[3] is not None else found[4]
                self._tests.setdefault((found[1], kind), []).append((index, literal))
                return True
            if found := _EQUAL.fullmatch(part):
                literal = found[2] if found[2] is not None else found[3]
                self._tests.setdefault((found[1], "=="), []).append((index, literal))
                return True
            if is_shell and (found := _PROGRAM.fullmatch(part)):
                literal = found[1] if found[1] is not None else found[2]
                self._programs.append((index, literal))
                return True
        return False

    def left(self, request: Request) -> list[int]:
        """Indices of the expressions that may be true of `request`, or fail, in order."""
        found = [*self._rest]
        arguments = request.arguments
        for (name, kind), tests in self._tests.items():
            text = arguments.get(name)
            # A text that CEL cannot take (a lone surrogate) makes it fail, and that denies.
            if not isinstance(text, str) or not _is_unicode(text):
                found += [index for index, _ in tests]
            elif kind == "contains":
                found += [index for index, literal in tests if literal in text]
            elif kind == "==":
                found += [index for index, literal in tests if literal == text]
            elif kind == "startsWith":
                found += [index for index, literal in tests if text.startswith(literal)]
            else:
                found += [index for index, literal in tests if text.endswith(literal)]
        if self._programs:
            text = arguments.get(_COMMAND)
            if not isinstance(text, str) or not _is_unicode(text):
                found += [index for index, _ in self._programs]
            elif not _QUOTING.search(text):
                found += [index for index, literal in self._programs if literal in text]
            else:
                programs = frozenset(request.command.programs)
                found += [index for index, literal in self._programs if literal in programs]
        found.sort()
        return found


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conjuncts(text: str) -> list[str]:
    """The parts of `a && b && c`; none where that is not plainly what `text` is."""
    parts: list[str] = []
    depth, start, at = 0, 0, 0
    while at < len(text):
        c = text[at]
        if c in "\"'":
            if text[at : at + 3] == c * 3 or (at and text[at - 1] in "rRbB"):
                return []
            at += 1
            while at < len(text) and text[at] != c:
                at += 2 if text[at] == "\\" else 1
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif text.startswith("//", at) or (not depth and (text.startswith("||", at) or c == "?")):
            return []
        elif not depth and text.startswith("&&", at):
            parts.append(text[start:at].strip())
            at += 1
            start = at + 1
        at += 1
    return [*parts, text[start:].strip()]
