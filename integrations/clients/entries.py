"""What Purple writes into a client's file, and how it knows its own again. Pure but for looking for
the `purple` program."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from .known import Client, Scope

SERVER_PROFILE = "mcp-server"


def program(scope: Scope) -> str:
    """How a client finds `purple`: by path; by name in a project's file, which others share."""
    if scope == "project":
        return "purple"
    beside = Path(sys.executable).parent / "purple"
    return str(beside) if beside.exists() else shutil.which("purple") or "purple"


def serve_entry(
    client: Client, scope: Scope, profile: str, workspace: Path | None
) -> dict[str, Any]:
    """The entry that starts `purple serve`.

    Args:
        client: Who will start it.
        scope: In which of its files.
        profile: Name of a profile.
        workspace: The directory that the tools see; None: the client's open project.

    Raises:
        ValueError: None was given for a client that has no open project to name.
    """
    arguments = ["serve", "-p", profile]
    place = str(workspace.absolute()) if workspace is not None else client.workspace
    if place is None:
        raise ValueError(
            f"{client.title} does not say which project is open; name the directory: -w DIR"
        )
    if place:
        arguments += ["-w", place]
    return _entry(client, program(scope), arguments)


def wrapped(client: Client, scope: Scope, entry: Mapping[str, Any], profile: str) -> dict[str, Any] | None:  # fmt: skip
    """The entry with its server behind `purple wrap`; all else of it stays.

    Returns:
        None where that cannot be: no command of its own (a remote server), or Purple's already.
    """
    command, arguments = command_of(entry)
    if not command or is_ours(entry):
        return None
    names = cast(Mapping[str, Any], entry.get("env") or {})
    passed = [word for name in names for word in ("--env", name)]
    new = dict(entry)
    new["command"] = program(scope)
    new["args"] = ["wrap", "-p", profile, *passed, "--", command, *arguments]
    return new


def unwrapped(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Inverse of `wrapped`; None where the entry is not such a one."""
    command, arguments = command_of(entry)
    if not _is_purple(command) or arguments[:1] != ["wrap"] or "--" not in arguments:
        return None
    own = arguments[arguments.index("--") + 1 :]
    if not own:
        return None
    new = dict(entry)
    new["command"] = own[0]
    new["args"] = own[1:]
    return new


def is_ours(entry: Any) -> bool:
    """Whether this entry starts Purple."""
    if not isinstance(entry, Mapping):
        return False
    command, arguments = command_of(cast(Mapping[str, Any], entry))
    return _is_purple(command) and arguments[:1] in (["serve"], ["wrap"])


def command_of(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Its command and arguments; "" for a server that is reached by a URL."""
    command: Any = entry.get("command", "")
    arguments: Any = entry.get("args") or []
    if isinstance(command, Mapping):  # Zed's older form: {"path": …, "args": […]}
        inner = cast(Mapping[str, Any], command)
        command, arguments = inner.get("path", ""), inner.get("args") or []
    return str(command), [str(word) for word in arguments]


def _is_purple(command: str) -> bool:
    return Path(command).name == "purple"


def _entry(client: Client, command: str, arguments: list[str]) -> dict[str, Any]:
    head = {"type": "stdio"} if client.typed else {}
    return {**head, "command": command, "args": arguments}
