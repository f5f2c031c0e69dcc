"""`purple wrap -p PROFILE -- SERVER…`: an existing tool server, sandboxed, decided and recorded."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from .serve import add_http, http_of


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "wrap",
        help="serve an existing MCP server from inside a sandbox",
        description="Put this before the server's command in the client's configuration. Names and "
        "identity of the server stay as they are.",
    )
    parser.add_argument(
        "-p", "--profile", help="name or path (default: mcp-server; with a URL, that host alone)"
    )
    parser.add_argument("-w", "--workspace", default=".", help="directory it sees (default: here)")
    parser.add_argument(
        "--name",
        default="",
        help="of the server in rules, records and pins (default: its command's)",
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="a variable of the caller's that the server gets, too, or one with this value; "
        "${secret:NAME}, ${file:path} and ${command:…} in it are read (may be repeated)",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a server that is reached there, in place of a command")
    where.add_argument(
        "--url-from", metavar="NAME",
        help="the same, with its headers, in a variable: what `purple import` writes",
    )  # fmt: skip
    add_http(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- SERVER…")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Serve until stdin closes."""
    from ...policies import PolicyError, PolicySource
    from . import fail
    from .policy import in_force

    command: list[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.url or args.url_from:
        return _remote(args, command)
    if not command:
        return fail("no server; write: purple wrap -p PROFILE -- SERVER ARGS…")
    workspace = Path(args.workspace)
    if not workspace.is_dir():
        return fail(f"workspace {workspace} is not a directory; create it or name another")
    try:
        source = PolicySource(name=args.profile or "mcp-server", project=workspace)
        policy = in_force(source)
    except PolicyError as error:
        return fail(str(error))
    try:
        env, secrets = _environment(args.env)
        http = http_of(args)
    except ValueError as error:
        return fail(str(error))
    from ...isolation import CommandNotFound, IsolationError
    from ..runners import remedy
    from ..server import ListenError, serve_wrapped

    print(
        f"purple: {shlex.join(command)} under {policy.name} on {args.http or 'stdio'}",
        file=sys.stderr,
    )
    try:
        asyncio.run(
            serve_wrapped(
                policy,
                workspace,
                command,
                env,
                http=http,
                source=source,
                name=args.name,
                secrets=secrets,
                frames_a_second=args.frame_rate,
            )
        )
    except CommandNotFound as error:
        status = 126 if error.code == "EACCES" else 127
        return fail(f"{error}{remedy(command, error)}", status)
    except IsolationError as error:
        return fail(f"{error}{remedy(command, error)}", 125)
    except ListenError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"cannot write the audit log: {error}")
    return 0


def _environment(given: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What `--env` names, its references read, and what those stood for. Raises `ValueError`."""
    from ...isolation.errors import SetupError
    from ..config import after_scheme, with_secret

    found: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not has_value:
            if name not in os.environ:
                raise ValueError(
                    f"--env {name}: there is no such variable; set it, or leave it out"
                )
            value = os.environ[name]
        if not name:
            raise ValueError(f"--env {text}: write NAME or NAME=VALUE")
        try:
            found[name] = with_secret(f"--env {name}", value)
        except SetupError as error:
            raise ValueError(str(error)) from None
        if found[name] != value:
            secrets[name] = after_scheme(found[name])
    return found, secrets


def _remote(args: argparse.Namespace, command: list[str]) -> int:
    """Serve a server that is reached by a URL."""
    from ...isolation import IsolationError
    from ...policies import PolicyError, PolicySource
    from ..config import ConfigError, remote_server
    from ..server import ListenError, serve_remote
    from . import fail
    from .policy import in_force

    if command:
        return fail("name a URL or a command, not both")
    given: object = {"url": args.url}
    if args.url_from:
        try:
            given = json.loads(os.environ[args.url_from])["server"]
        except KeyError:
            return fail(
                f"--url-from {args.url_from}: there is no such variable, or no server in it"
            )
        except (ValueError, TypeError):
            return fail(f"--url-from {args.url_from}: not what `purple import` writes")
    try:
        http = http_of(args)
        server = remote_server(args.name, given, args.profile or "")
        print(f"purple: {server.url} on {args.http or 'stdio'}", file=sys.stderr)
        workspace = Path(args.workspace)
        in_force(PolicySource(name=server.profile or "mcp-server", project=workspace))
        work = serve_remote(server, workspace, http=http, frames_a_second=args.frame_rate)
        asyncio.run(work)
    except (ConfigError, PolicyError, ValueError) as error:
        return fail(str(error))
    except IsolationError as error:
        return fail(str(error), 125)
    except ListenError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"cannot write the audit log: {error}; nothing has run", 125)
    return 0
