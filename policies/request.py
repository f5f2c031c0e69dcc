"""A call as it is judged: canonical arguments, and the paths, URLs and command among them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from .canonical import CanonicalError, Place, Url, canonical_path, canonical_url, check_keys

if TYPE_CHECKING:
    from .commands import CommandLine

# `path` is read or written, nobody knows.
Kind = Literal["read", "write", "path", "url", "command"]

BUILT_IN: Mapping[str, Mapping[str, Kind]] = {
    "shell": {"command": "command", "cwd": "path"},
    "process_start": {"command": "command", "cwd": "path"},
    "process_output": {},
    "process_input": {"input": "command"},  # what reads it may be a shell
    "process_stop": {},
    "process_list": {},
    "read_file": {"path": "read"},
    "write_file": {"path": "write"},
    "edit_file": {"path": "path"},
    "list_directory": {"path": "read"},
    "find_files": {"path": "read"},
    "search_text": {"path": "read"},
    "move": {"source": "path", "destination": "write"},
    "delete": {"path": "write"},
    "http_request": {"url": "url", "save_to": "write"},
    "workspace_diff": {"path": "read"},
    "workspace_discard": {"path": "write"},
}
# Built-in tools that do what another one does: what is denied, asked or limited there is here, too.
AS_SHELL: Mapping[str, str] = {"process_start": "command", "process_input": "input"}
# Tools whose `path` is the workspace when it is left out: judged as if it had been said.
_WHOLE_WORKSPACE = ("list_directory", "find_files", "search_text")
# Arguments of built-in tools that name a link itself where they name one: rename(2), unlink(2).
_ON_LINKS = frozenset([("move", "source"), ("move", "destination"), ("delete", "path")])
_SCHEMES = ("http://", "https://", "ws://", "wss://", "ftp://")
_PATH_STARTS = ("/", "~/", "./", "../", "file://")
_PATH_NAMES = frozenset(
    [
        "path",
        "file",
        "filename",
        "file_path",
        "filepath",
        "directory",
        "dir",
        "folder",
        "cwd",
        "root",
        "source",
        "destination",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Use:
    """One argument that names something outside the call.

    Attributes:
        argument: Dotted name, with an index for each list.
        kind: What it names, and how it is used.
        value: Canonical path or URL; the command line as it is.
        declared: Whether the tool's schema or the policy says so; else it only looks like it.
    """

    argument: str
    kind: Kind
    value: str
    declared: bool = True


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call, canonical.

    Attributes:
        tool: The server's own name for it.
        arguments: As sent, with what is declared a path or URL in its canonical spelling.
        server, client, session: "" where there is none.
        uses: What the arguments name.
        urls: Those of them that are URLs, parsed.
        place: Where relative paths began.
    """

    tool: str
    arguments: Mapping[str, Any]
    server: str = ""
    client: str = ""
    session: str = ""
    uses: tuple[Use, ...] = ()
    urls: tuple[Url, ...] = ()
    place: Place = field(default_factory=Place)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that an argument names, or seems to."""
        return tuple(u.value for u in self.uses if u.kind in ("read", "write", "path"))

    def resolved(self, follow: Callable[[str, bool], str]) -> Request:
        """The call with each path where it leads; itself where no path leads elsewhere.

        Args:
            follow: Gives the path that a canonical path leads to; its second argument says whether
                the last component is followed, which it is not where a tool acts on links
                themselves.

        Arguments that are declared are changed with it, and those that only look like paths are
        not; rules see all of them in `paths`.
        """
        arguments: Any = self.arguments
        uses: list[Use] = []
        for use in self.uses:
            if use.kind in ("read", "write", "path"):
                last = bool(self.server) or (self.tool, use.argument) not in _ON_LINKS
                path = follow(use.value, last)
                if path != use.value:
                    if use.declared:
                        arguments = _put(arguments, _steps(use.argument), path)
                    use = replace(use, value=path)
            uses.append(use)
        if tuple(uses) == self.uses:
            return self
        return replace(self, arguments=arguments, uses=tuple(uses))

    @cached_property
    def command(self) -> CommandLine:
        """The command line, parsed; an empty one where there is none."""
        from .commands import parse_command

        texts = [use.value for use in self.uses if use.kind == "command"]
        return parse_command("\n".join(texts))


def make_request(
    *, tool: str, arguments: Mapping[str, Any], server: str = "", client: str = "",
    session: str = "", place: Place | None = None,
    declared: Mapping[str, Mapping[str, Kind]] | None = None,
) -> Request:  # fmt: skip
    """Make the arguments canonical.

    Args:
        tool: The server's own name for it.
        arguments: As sent.
        server: "" for the built-in tools, whose kinds of arguments are known (`BUILT_IN`).
        client, session: Who asks.
        place: Where relative paths begin.
        declared: For other servers' tools, the policy's `tools.arguments`: which argument (dotted)
            of which tool (a glob on `tool` or `server__tool`) is what.

    Raises:
        CanonicalError: an argument that is declared a path or URL and has no one meaning, or keys
            that have not; names it.

    What is not declared and looks like a path or URL is noted in `uses` and never changed.
    """
    check_keys(arguments)
    place = place or Place()
    kinds: dict[str, Kind] = {}
    if not server:
        kinds.update(BUILT_IN.get(tool, {}))
        if tool in _WHOLE_WORKSPACE and "path" not in arguments and place.workspace is not None:
            arguments = {**arguments, "path": place.workspace}
    else:
        for pattern, mapping in (declared or {}).items():
            if any(fnmatchcase(name, pattern) for name in names(tool, server)):
                kinds.update(mapping)
    found = _Found(place)
    canonical = dict(arguments)
    for name, kind in kinds.items():
        _replace(canonical, name.split("."), kind, "", found)
    if server or tool not in BUILT_IN:
        named = {use.argument for use in found.uses}
        for argument, text in _texts(arguments, ""):
            if argument not in named:
                found.guess(argument, text)
    return Request(
        tool=tool, arguments=canonical, server=server, client=client, session=session,
        uses=tuple(found.uses), urls=tuple(found.urls), place=place,
    )  # fmt: skip


def as_shell(request: Request) -> Request | None:
    """The call of `shell` that does the same; None where there is none."""
    argument = AS_SHELL.get(request.tool)
    if request.server or argument is None:
        return None
    arguments = dict(request.arguments)
    arguments["command"] = arguments.pop(argument, "")
    uses = tuple(
        replace(use, argument="command") if use.argument == argument else use
        for use in request.uses
    )
    return replace(request, tool="shell", arguments=arguments, uses=uses)


def restricted_as(tool: str, server: str) -> tuple[str, ...]:
    """What patterns that restrict a tool may call it: its names, and whose work it does as well."""
    also = ("shell",) if not server and tool in AS_SHELL else ()
    return (*names(tool, server), *also)


def names(tool: str, server: str) -> tuple[str, ...]:
    """What patterns may call a tool: its own name, and the one with the gateway's prefix."""
    return (tool, f"{server}__{tool}") if server else (tool,)


class _Found:
    def __init__(self, place: Place) -> None:
        self._place = place
        self.uses: list[Use] = []
        self.urls: list[Url] = []

    def take(self, argument: str, text: str, kind: Kind) -> str:
        """Note an argument that is declared; returns its canonical spelling."""
        try:
            if kind == "url":
                url = canonical_url(text)
                self.urls.append(url)
                text = url.text
            elif kind != "command":
                text = canonical_path(text, self._place)
        except CanonicalError as error:
            raise CanonicalError(str(error), argument) from None
        self.uses.append(Use(argument=argument, kind=kind, value=text))
        return text

    def guess(self, argument: str, text: str) -> None:
        """Note what looks like a path or URL."""
        name = argument.rsplit(".", 1)[-1].split("[")[0].lower()
        try:
            if text.strip().lower().startswith(_SCHEMES):
                url = canonical_url(text)
                self.urls.append(url)
                use = Use(argument=argument, kind="url", value=url.text, declared=False)
            elif text.startswith(_PATH_STARTS) or name in _PATH_NAMES:
                path = canonical_path(text, self._place)
                use = Use(argument=argument, kind="path", value=path, declared=False)
            else:
                return
        except CanonicalError:
            return
        self.uses.append(use)


def _replace(holder: Any, parts: list[str], kind: Kind, where: str, found: _Found) -> None:
    """Make one declared argument canonical in `holder`; each element where it is a list."""
    if not isinstance(holder, dict):
        raise CanonicalError("an object is expected here", where)
    mapping = cast("dict[str, Any]", holder)
    name = parts[0]
    if name not in mapping or mapping[name] is None:
        return
    where = f"{where}.{name}" if where else name
    value: Any = mapping[name]
    if len(parts) > 1:
        if isinstance(value, list):
            copies: list[Any] = [_copy(item) for item in cast("Sequence[Any]", value)]
            mapping[name] = copies
            for index, item in enumerate(copies):
                _replace(item, parts[1:], kind, f"{where}[{index}]", found)
            return
        mapping[name] = _copy(value)
        _replace(mapping[name], parts[1:], kind, where, found)
    elif isinstance(value, list):
        items = cast("Sequence[Any]", value)
        mapping[name] = [_text(v, f"{where}[{i}]", kind, found) for i, v in enumerate(items)]
    else:
        mapping[name] = _text(value, where, kind, found)


def _copy(value: Any) -> Any:
    return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else value


def _text(value: Any, where: str, kind: Kind, found: _Found) -> str:
    if not isinstance(value, str):
        raise CanonicalError(f"a {kind} is a text", where)
    return found.take(where, value, kind)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text at any depth, with its dotted name."""
    waiting: list[tuple[str, Any]] = [(where, value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, str):
            yield name, item
        elif isinstance(item, Mapping):
            for key, inner in cast("Mapping[str, Any]", item).items():
                waiting.append((f"{name}.{key}" if name else key, inner))
        elif isinstance(item, list | tuple):
            for index, inner in enumerate(cast("Sequence[Any]", item)):
                waiting.append((f"{name}[{index}]", inner))


def _steps(argument: str) -> list[str | int]:
    """A declared argument's dotted name as keys and indices."""
    steps: list[str | int] = []
    for part in argument.split("."):
        name, *indices = re.split(r"\[(\d+)\]", part)
        steps += [name, *(int(index) for index in indices if index)]
    return steps


def _put(holder: Any, steps: list[str | int], value: str) -> Any:
    """A copy of `holder` with `value` at `steps`."""
    if not steps:
        return value
    first, *rest = steps
    if isinstance(first, int):
        items = list(cast("Sequence[Any]", holder))
        items[first] = _put(items[first], rest, value)
        return items
    mapping = cast("Mapping[str, Any]", holder)
    return {**mapping, first: _put(mapping[first], rest, value)}
