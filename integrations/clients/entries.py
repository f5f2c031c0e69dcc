"""What Purple writes into a client's file, and how it knows its own again. Pure but for looking for
the `purple` program."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from .known import Client, Scope, Transport

SERVER_PROFILE = "mcp-server"
VARIABLE = "PURPLE_SERVER"  # what `purple wrap --url-from` reads of an imported server
# Codex: the token is in a variable that it reads itself.
_CLIENTS_TOKEN = ("bearer_token_env_var", "env_http_headers")


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
    place = _place(client, workspace)
    if place is None:
        raise _unknown(client)
    return _entry(client, program(scope), ["serve", "-p", profile, *_option("-w", place)])


def _place(client: Client, workspace: Path | None) -> str | None:
    return str(workspace.absolute()) if workspace is not None else client.workspace


def _unknown(client: Client) -> ValueError:
    return ValueError(
        f"{client.title} does not say which project is open; name the directory: -w DIR"
    )


def _option(option: str, value: str | None) -> list[str]:
    return [option, value] if value else []


def profile_of(command: str, arguments: Sequence[str]) -> str:
    """The profile under which a server that this command starts can run."""
    name = Path(command).name
    if name == "npx":
        return f"{SERVER_PROFILE}-npx"
    verbs = [word for word in arguments if not word.startswith("-")][:2]
    if name == "uvx" or (name == "uv" and verbs == ["tool", "run"]):
        return f"{SERVER_PROFILE}-uvx"
    return SERVER_PROFILE


def name_of(name: str) -> str:
    """The name for `purple wrap`: what a rule and a command line can say without quotes; "" for none."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")


def wrapped(
    client: Client, scope: Scope, entry: Mapping[str, Any], profile: str = "", *,
    name: str = "", workspace: Path | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """The entry with its server behind `purple wrap`; all else of it stays.

    Args:
        client: Who will start it.
        scope: In which of its files.
        entry: As it is there.
        profile: Name of a profile; "" chooses by the command.
        name: Of the server in the client: also its name in rules, records and pins.
        workspace: The directory that it sees; None: its own `cwd`, or the client's open project.

    Returns:
        None where that cannot be: neither a command nor a URL, a token that only the client knows, or
        Purple's already.

    Raises:
        ValueError: no workspace was given for a client that has no open project to name.
    """
    command, arguments = command_of(entry)
    if is_ours(entry):
        return None
    called = _option("--name", name_of(name))
    if not command:
        return _wrapped_url(client, scope, entry, profile, called)
    place = _place(client, workspace)
    if place is None:
        raise _unknown(client)
    if workspace is None and entry.get("cwd"):  # the client starts it there
        place = ""
    passed = [
        word for key in cast(Mapping[str, Any], entry.get("env") or {}) for word in ("--env", key)
    ]
    under = ["-p", profile or profile_of(command, arguments), *_option("-w", place), *called]
    new = dict(entry)
    new["command"] = program(scope)
    new["args"] = ["wrap", *under, *passed, "--", command, *arguments]
    return new


def url_of(client: Client, entry: Mapping[str, Any]) -> tuple[str, Transport] | None:
    """The URL of a server that is reached by one, and the transport; None for others."""
    for key, transport in client.urls.items():
        if isinstance(url := entry.get(key), str):
            said: Any = entry.get("type", transport)
            return url, "sse" if said == "sse" else "http"
    return None


def _wrapped_url(
    client: Client, scope: Scope, entry: Mapping[str, Any], profile: str, called: list[str]
) -> dict[str, Any] | None:
    found = url_of(client, entry)
    if found is None or any(key in entry for key in _CLIENTS_TOKEN):
        return None
    own = ("type", "headers", "http_headers", *client.urls)
    taken = {key: value for key, value in entry.items() if key in own}
    # By a variable, whole: headers may be secrets, and command lines are everyone's to read. It is
    # also what `unwrapped` gives back.
    headers = entry.get("http_headers", entry.get("headers", {}))
    said = {"url": found[0], "type": found[1], "headers": headers}
    # Without a profile its own host is all that is reached; mcp-server reaches no network.
    under = [*_option("-p", "" if profile == SERVER_PROFILE else profile), *called]
    new = {key: value for key, value in entry.items() if key not in own}
    new.update(_entry(client, program(scope), ["wrap", *under, "--url-from", VARIABLE]))
    new["env"] = {VARIABLE: json.dumps({"entry": taken, "server": said}, ensure_ascii=False)}
    return new


def _unwrapped_url(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    variables: Any = entry.get("env") or {}
    try:
        taken: Any = json.loads(variables[VARIABLE])["entry"]
        new = {k: v for k, v in entry.items() if k not in ("command", "args", "env", "type")}
        return {**new, **taken}
    except (KeyError, TypeError, ValueError):
        return None


def unwrapped(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Inverse of `wrapped`; None where the entry is not such a one."""
    command, arguments = command_of(entry)
    if not _is_purple(command) or arguments[:1] != ["wrap"]:
        return None
    if "--url-from" in arguments:
        return _unwrapped_url(entry)
    if "--" not in arguments:
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
