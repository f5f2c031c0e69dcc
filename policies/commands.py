"""What a shell command line says it will do: programs, their arguments, redirections. Pure.

A hint, never a boundary: a program may be a script, a renamed binary or an interpreter, and names may
be computed. What cannot be seen is said (`opaque`), so that a rule may ask about it; what a command
may really do is decided by the sandbox. Parsed with tree-sitter's bash grammar.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_MAX_BYTES = 64 << 10
_MAX_NESTING = 8
_SHELLS = frozenset(["sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "rbash", "fish"])
_APPLETS = frozenset(("busybox", "toybox"))
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Programs that run another, with those of their options that take a value of their own.
_WRAPPERS: dict[str, str] = {
    "env": "-u --unset -C --chdir", "sudo": "-u -g -h -p -C -D -R -T -U -r -t", "doas": "-u -C",
    "nohup": "", "nice": "-n --adjustment", "ionice": "-c -n -p", "time": "-f -o", "timeout": "-k -s",
    "stdbuf": "-i -o -e", "setsid": "", "exec": "-a", "command": "", "builtin": "", "coproc": "",
    "xargs": "-I -n -P -L -d -E -s -a", "watch": "-n", "chroot": "", "unshare": "", "flock": "-w -E",
    "setpriv": "--reuid --regid --groups", "strace": "-e -o -p -s", "taskset": "", "parallel": "-j",
    "script": "", "su": "",
}  # fmt: skip
# How many words of their own stand before the program.
_WORDS_BEFORE = {"timeout": 1, "chroot": 1, "flock": 1, "taskset": 1}
_RUNS_TEXT = {"su": "-c", "script": "-c"}
_FIND_ACTIONS = ("-exec", "-execdir", "-ok", "-okdir")


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One program that is run.

    Attributes:
        program: Its name without directories.
        path: As it is written, quotes and escapes undone.
        args: Its arguments, likewise; what a variable or substitution gives is "" there.
    """

    program: str
    path: str
    args: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Redirection:
    """`operator` as in the shell ("<", ">", ">>", "&>", …); `target` is "" when it is computed."""

    operator: str
    target: str


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a command line says.

    Attributes:
        text: As it is.
        invocations: In the order of the text, also those in substitutions, functions, `sh -c '…'`,
            behind `env`, `sudo`, `xargs`, `find -exec`, `busybox` and their like.
        redirections: Files that the shell itself opens.
        opaque: Whether something runs that cannot be seen here: a computed name, a shell that reads
            its commands from a pipe or file, `eval` of something computed, a syntax error.
    """

    text: str = ""
    invocations: tuple[Invocation, ...] = ()
    redirections: tuple[Redirection, ...] = ()
    opaque: bool = False

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of what is run, each once."""
        return tuple(dict.fromkeys(i.program for i in self.invocations))

    def to_json(self) -> dict[str, Any]:
        """As rules see it, under `command`."""
        return {
            "text": self.text,
            "programs": list(self.programs),
            "invocations": [
                {"program": i.program, "path": i.path, "args": list(i.args)}
                for i in self.invocations
            ],
            "redirections": [
                {"operator": r.operator, "target": r.target} for r in self.redirections
            ],
            "opaque": self.opaque,
        }


def parse_command(text: str) -> CommandLine:
    """Read a command line. Never raises; over 64 KiB it is opaque and nothing more is said."""
    if len(text.encode("utf-8", "replace")) > _MAX_BYTES:
        return CommandLine(text=text, opaque=True)
    reader = _Reader()
    reader.read(text, 0)
    return CommandLine(
        text=text,
        invocations=tuple(reader.invocations),
        redirections=tuple(reader.redirections),
        opaque=reader.opaque,
    )


@cache
def _parser() -> Parser:
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


class _Reader:
    def __init__(self) -> None:
        self.invocations: list[Invocation] = []
        self.redirections: list[Redirection] = []
        self.opaque = False

    def read(self, text: str, depth: int) -> None:
        """Read a whole command text."""
        if depth > _MAX_NESTING:
            self.opaque = True
            return
        data = text.encode("utf-8", "replace")
        root = _parser().parse(data).root_node
        if root.has_error:
            self.opaque = True
        self._walk(root, depth)

    def _walk(self, top: Node, depth: int) -> None:
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if node.type == "command":
                self._command(node, depth)
            elif node.type == "file_redirect":
                self._redirect(node)
            elif node.type == "declaration_command":
                self._note(_first_word(node), [])
            waiting.extend(reversed(node.named_children))

    def _redirect(self, node: Node) -> None:
        # The grammar does not know `<>` and has an error node for its second character.
        operator = "".join(
            (child.text or b"").decode()
            for child in node.children
            if not child.is_named or child.type == "ERROR"
        )
        target = node.child_by_field_name("destination")
        word = None if target is None else _static(target)
        if word is None:
            self.opaque = self.opaque or target is None
        elif operator in (">&", "<&") and (word.isdigit() or word == "-"):
            return  # a descriptor, not a file
        self.redirections.append(Redirection(operator=operator, target=word or ""))

    def _command(self, node: Node, depth: int) -> None:
        words: list[str | None] = []
        for child in node.named_children:
            if child.type == "command_name":
                words.append(_static(child.named_children[0]) if child.named_children else None)
            elif child.type not in (
                "variable_assignment", "file_redirect", "herestring_redirect", "heredoc_redirect",
                "comment",
            ):  # fmt: skip
                words.append(_static(child))
        self._run(words, depth)

    def _note(self, path: str, args: Sequence[str | None]) -> None:
        self.invocations.append(
            Invocation(
                program=path.rsplit("/", 1)[-1], path=path, args=tuple(a or "" for a in args)
            )
        )

    def _run(self, words: Sequence[str | None], depth: int) -> None:
        """Note the program `words[0]` and what it runs in its turn."""
        if not words:
            return
        if depth > _MAX_NESTING or words[0] is None or not words[0]:
            self.opaque = True
            return
        path, rest = words[0], list(words[1:])
        self._note(path, rest)
        program = path.rsplit("/", 1)[-1]
        if any(c in path for c in "*?["):
            self.opaque = True
        if program in _SHELLS:
            self._shell(rest, depth)
        elif program == "eval":
            self._text(rest, depth)
        elif program in ("trap", "alias"):
            self._quoted(program, rest, depth)
        elif program in (".", "source"):
            self.opaque = True
        elif program in _APPLETS:
            self._run(rest, depth + 1)
        elif program == "find":
            for index, word in enumerate(rest):
                if word in _FIND_ACTIONS:
                    self._run(rest[index + 1 :], depth + 1)
        elif program in _WRAPPERS:
            self._wrapped(program, rest, depth)

    def _text(self, words: Sequence[str | None], depth: int) -> None:
        if any(word is None for word in words):
            self.opaque = True
        self.read(" ".join(word or "" for word in words), depth + 1)

    def _quoted(self, program: str, words: list[str | None], depth: int) -> None:
        for word in words:
            if word is None:
                self.opaque = True
            elif program == "trap" and not word.startswith("-"):
                self.read(word, depth + 1)
                return
            elif program == "alias" and "=" in word:
                self.read(word.partition("=")[2], depth + 1)

    def _shell(self, words: list[str | None], depth: int) -> None:
        for index, word in enumerate(words):
            if word is None:
                self.opaque = True
                return
            if word.startswith("-") and not word.startswith("--") and "c" in word:
                self._text(words[index + 1 : index + 2], depth)
                if index + 1 >= len(words):
                    self.opaque = True
                return
            if not word.startswith(("-", "+")):
                self.opaque = True  # a script: what is in it cannot be seen
                return
        if "--version" not in words:
            self.opaque = True  # its commands come from its stdin

    def _wrapped(self, program: str, words: list[str | None], depth: int) -> None:
        valued = _WRAPPERS[program].split()
        before = _WORDS_BEFORE.get(program, 0)
        index = 0
        while index < len(words):
            word = words[index]
            if word is None:
                break
            if program in _RUNS_TEXT and word == _RUNS_TEXT[program]:
                self._text(words[index + 1 : index + 2], depth)
                return
            if program == "env" and word in ("-S", "--split-string"):
                self._text(words[index + 1 :], depth)
                return
            if program == "env" and word.startswith(("-S", "--split-string=")):
                text = word.removeprefix("-S").removeprefix("--split-string=")
                self._text([text, *words[index + 1 :]], depth)
                return
            if word in ("-v", "-V") and program == "command":
                return  # only asks where a program is
            if word in valued:
                index += 2
            elif word.startswith("-") or (
                program in ("env", "sudo", "doas") and _ASSIGNMENT.match(word)
            ):
                index += 1
            elif before:
                before -= 1
                index += 1
            else:
                break
        if index < len(words):
            self._run(words[index:], depth + 1)


def _first_word(node: Node) -> str:
    text = node.text or b""
    return text.split(None, 1)[0].decode("utf-8", "replace") if text else ""


def _static(node: Node) -> str | None:
    """The text of a word after quotes and escapes; None where the shell computes it."""
    text = (node.text or b"").decode("utf-8", "replace")
    reader = _WORDS.get(node.type)
    return None if reader is None else reader(node, text)


def _word(node: Node, text: str) -> str | None:
    if node.named_child_count:
        return None
    if "\\" not in text:
        return text
    return re.sub(r"\\(\n|.)", lambda m: "" if m[1] == "\n" else m[1], text, flags=re.DOTALL)


def _string(node: Node, text: str) -> str | None:
    if any(child.type != "string_content" for child in node.named_children):
        return None
    inside = text[1:-1]
    return re.sub(r'\\([$`"\\\n])', lambda m: "" if m[1] == "\n" else m[1], inside)


def _raw(node: Node, text: str) -> str | None:
    return text[1:-1]


def _ansi(node: Node, text: str) -> str | None:
    try:
        return codecs.decode(text[2:-1].replace("\\'", "'"), "unicode_escape")
    except (UnicodeError, ValueError):
        return None


def _concatenation(node: Node, text: str) -> str | None:
    pieces: list[str] = []
    for child in node.children:
        piece = _static(child) if child.is_named else (child.text or b"").decode()
        if piece is None:
            return None
        pieces.append(piece)
    whole = "".join(pieces)
    return None if re.fullmatch(r".*\{.*(,|\.\.).*\}.*", whole, re.DOTALL) else whole


_WORDS: dict[str, Callable[[Any, str], str | None]] = {
    "word": _word,
    "number": _word,
    "string": _string,
    "raw_string": _raw,
    "ansi_c_string": _ansi,
    "concatenation": _concatenation,
    "test_operator": _word,
    "regex": _word,
    "extglob_pattern": _word,
    "variable_name": _word,
}
