"""The file that names tool servers: `mcpServers` as clients write it, in JSON or YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ..isolation.egress.credentials import REFERENCE, read_reference
from ..isolation.errors import SetupError
from .wire.jsonrpc import is_list, is_object
from .wire.links import Grant, Kind, destination

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_)){0,31}")
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_KEYS = ("command", "args", "env", "type", "profile", "workspace", "url", "headers", "auth")
_KINDS: dict[str, Kind] = {
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "sse": "sse",
}
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}")  # RFC 9110, 5.6.2
# The gateway's own to send.
_OURS = re.compile(
    r"host|content-.*|transfer-encoding|connection|accept|mcp-.*|last-event-id|te|upgrade|trailer",
    re.I,
)
# Read as the same by a person or a model that looks fast.
_ALIKE = str.maketrans({"1": "l", "i": "l", "0": "o", "-": "_", ".": "_"})


class ConfigError(ValueError):
    """The file is wrong; the text names file, server and key."""


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """One tool server: started by a command, or reached by a URL.

    Attributes:
        name: Its prefix in aggregated names, and its name in rules and records.
        argv: The command; () for a server with a URL.
        env: Added to its profile's environment, variables replaced.
        profile: Name or path of its policy; "" for a server with a URL that names none: its own
            host and port are then all that is reached.
        workspace: Directory that it sees; None is the gateway's.
        origin: The file that names it; with its name, what its pins are kept under.
        url: Of its endpoint; "" for one with a command.
        kind: "http" is streamable HTTP, "sse" the transport before it.
        headers: Sent to it, variables replaced.
        auth: How a token for it is got; None where it wants none, or one stands in `headers`.
        secrets: By name, what references in env and headers stood for: secret whatever the name.

    `${secret:NAME}`, `${file:path}` and `${command:…}` in env, headers and `auth` are there until
    `with_secrets` has read them.
    """

    name: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    profile: str = "mcp-server"
    workspace: Path | None = None
    origin: str = ""
    url: str = ""
    kind: Kind = "http"
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    auth: Grant | None = None
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


def skeleton(name: str) -> str:
    """What names that look alike have in common."""
    return name.casefold().translate(_ALIKE)


def load_servers(path: Path, environment: Mapping[str, str] = os.environ) -> list[ServerSpec]:
    """The servers in `path`, in its order.

    `${NAME}`, `${env:NAME}` and `${NAME:-default}` in command, args, env, url and headers are replaced.

    Raises:
        ConfigError: unreadable, an unknown key, a missing variable, names that collide or look
            alike, or a server with neither a command nor a URL.
    """
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(unreadable(path, error)) from None
    found: Any = document.get("mcpServers") if is_object(document) else None
    if not is_object(found) or not found:
        raise ConfigError(f"{path}: no mcpServers; write {{mcpServers: {{name: {{command: …}}}}}}")
    servers: list[ServerSpec] = []
    seen: dict[str, str] = {}
    for name, fields in found.items():
        where = f"{path}: mcpServers.{name}"
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(f"{where}: names have 1 to 32 of A-Z a-z 0-9 _ - . and no '__'")
        if other := seen.get(skeleton(name)):
            raise ConfigError(f"{where}: looks like {other}; rename one")
        seen[skeleton(name)] = name
        server = _server(name, fields, where, environment)
        servers.append(replace(server, origin=str(path.resolve())))
    return servers


def unreadable(path: Path, error: Exception) -> str:
    """One line on a file that could not be read or parsed: where, and what; nothing of its text."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror}"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"{path}: {str(error).splitlines()[0]}"
    return f"{path}:{mark.line + 1}:{mark.column + 1}: {problem}"


def _server(name: str, fields: Any, where: str, environment: Mapping[str, str]) -> ServerSpec:
    if not is_object(fields):
        raise ConfigError(f"{where}: a mapping is needed")
    given = fields
    if unknown := [key for key in given if key not in _KEYS]:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key; known: {', '.join(_KEYS)}")
    if "url" in given:
        return _remote(name, given, where, environment)
    if given.get("type", "stdio") != "stdio":
        raise ConfigError(f"{where}.type: a server with a command speaks stdio")
    command, args, env = given.get("command"), given.get("args", []), given.get("env", {})
    if "auth" in given:
        raise ConfigError(f"{where}.auth: for a server with a url; name a secret in env")
    if not isinstance(command, str) or not is_list(args) or not is_object(env):
        raise ConfigError(f"{where}: command is a text, args a list, env a mapping")

    def replaced(value: Any, key: str) -> str:
        return _replaced(value, f"{where}.{key}", environment)

    workspace = given.get("workspace")
    return ServerSpec(
        name=name,
        argv=(replaced(command, "command"), *(replaced(a, "args") for a in args)),
        env={str(k): replaced(v, "env") for k, v in env.items()},
        profile=str(given.get("profile", "mcp-server")),
        workspace=None if workspace is None else Path(str(workspace)).expanduser(),
    )  # fmt: skip


def remote_server(name: str, fields: Any, profile: str) -> ServerSpec:
    """One server that is reached by a URL, from its `url`, `type` and `headers`.

    Raises:
        ConfigError: they are not such; a variable is missing.
    """
    if not is_object(fields):
        raise ConfigError(f"{name}: a mapping is needed")
    server = _remote(name, fields, name or "server", os.environ)
    # Known by its host where it has no name: rules, records and pins tell it from others.
    return replace(server, name=name or urlsplit(server.url).hostname or "url", profile=profile)


def _remote(name: str, given: Any, where: str, environment: Mapping[str, str]) -> ServerSpec:
    headers = given.get("headers", {})
    for key in ("command", "args", "env", "workspace"):
        if key in given:
            raise ConfigError(f"{where}.{key}: a server with a url has none")
    kind = _KINDS.get(str(given.get("type", "http")))
    if kind is None:
        raise ConfigError(f"{where}.type: one of {', '.join(_KINDS)}")
    if not isinstance(given["url"], str) or not is_object(headers):
        raise ConfigError(f"{where}: url is a text, headers a mapping")
    sent: dict[str, str] = {}
    for key, value in headers.items():
        if not _HEADER.fullmatch(str(key)) or _OURS.fullmatch(str(key)):
            raise ConfigError(f"{where}.headers.{key}: no header that can be set here")
        text = _replaced(value, f"{where}.headers.{key}", environment)
        if not text.isprintable() or not text.isascii():
            raise ConfigError(f"{where}.headers.{key}: only printable ASCII can be sent")
        sent[str(key)] = text
    url = _replaced(given["url"], f"{where}.url", environment)
    try:
        destination(url)
    except ValueError as error:
        raise ConfigError(f"{where}.url: {error}") from None
    return ServerSpec(
        name=name, profile=str(given.get("profile", "")), url=url, kind=kind, headers=sent,
        auth=_grant(given["auth"], f"{where}.auth", environment) if "auth" in given else None,
    )  # fmt: skip


def _grant(given: Any, where: str, environment: Mapping[str, str]) -> Grant:
    known = ("issuer", "client_id", "client_secret", "scope")
    if not is_object(given):
        raise ConfigError(f"{where}: a mapping is needed; known: {', '.join(known)}")
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key; known: {', '.join(known)}")
    read = {key: _replaced(value, f"{where}.{key}", environment) for key, value in given.items()}
    grant = Grant(**{"issuer": "", **read})
    if grant.client_secret and not grant.client_id:
        raise ConfigError(f"{where}: a client_secret needs its client_id")
    try:
        destination(grant.issuer)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{where}.issuer: the authorization server is needed: {error}") from None
    return grant


def with_secrets(server: ServerSpec) -> ServerSpec:
    """The server with what its references stand for. May run commands: call it in a thread.

    Raises:
        SetupError: one cannot be had; says which and what to do, and nothing of a secret.
    """

    found: dict[str, str] = {}

    def read(value: str, where: str) -> str:
        text = with_secret(f"mcpServers.{server.name}.{where}", value)
        if text != value:
            found[where.partition(".")[2]] = after_scheme(text)
        return text

    auth = server.auth
    if auth is not None:
        auth = replace(auth, client_secret=read(auth.client_secret, "auth.client_secret"))
    env = {k: read(v, f"env.{k}") for k, v in server.env.items()}
    headers = {k: read(v, f"headers.{k}") for k, v in server.headers.items()}
    return replace(server, auth=auth, env=env, headers=headers, secrets=found)


def after_scheme(text: str) -> str:
    """Of "Bearer X" what must not come back: X."""
    return text.partition(" ")[2] or text


def with_secret(where: str, value: str) -> str:
    """`value` with what its reference stands for; as it is where it holds none. As `with_secrets`.

    Args:
        where: Named in errors.
        value: With one `${secret:NAME}`, `${file:path}` or `${command:…}` at most.
    """
    if REFERENCE.search(value) is None:
        return value
    text = read_reference(where, value).decode("latin-1")
    if not text.isprintable() or not text.isascii():
        raise SetupError(f"{where}: only printable ASCII can be sent")
    return text


def _replaced(value: Any, where: str, environment: Mapping[str, str]) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] in environment:
            return environment[match[1]]
        if match[2] is None:
            raise ConfigError(f"{where}: the variable {match[1]} is not set")
        return match[2]

    return _VARIABLE.sub(variable, str(value))
