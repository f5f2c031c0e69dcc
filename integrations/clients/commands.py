"""`purple register | import | unregister | undo CLIENT`, `purple bundle`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from .known import CLIENTS, Client, Place, Scope

_SCOPES = ("user", "local", "project")


def add_parsers(verbs: Any) -> None:
    """Add the verbs."""
    names = sorted(CLIENTS)
    register = _verb(verbs, "register", "have a client use Purple's tools", _register, names)
    register.add_argument("-p", "--profile", default="code-assistant", help="name of a profile")
    register.add_argument("-w", "--workspace", type=Path, help="directory (default: the open project)")  # fmt: skip
    register.add_argument("--name", default="purple", help="the server's name in the client")
    take = _verb(verbs, "import", "take a client's servers behind Purple", _import, names)
    take.add_argument("-p", "--profile", default="mcp-server", help="profile of each server")
    take.add_argument(
        "--only", action="append", metavar="SERVER", help="this one (may be repeated)"
    )
    take.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _verb(verbs, "unregister", "take Purple out of a client; its servers are as before", _unregister, names)  # fmt: skip
    undo = verbs.add_parser("undo", help="take back the last change of a client's file")
    undo.add_argument("client", choices=names)
    undo.set_defaults(handler=_undo)
    bundle = verbs.add_parser("bundle", help="write an MCPB bundle, for clients that install one")
    bundle.add_argument("-o", "--output", type=Path, default=Path("purple.mcpb"))
    bundle.add_argument(
        "-p", "--profile", default="code-assistant", help="the default it asks with"
    )
    bundle.set_defaults(handler=_bundle)


def _verb(verbs: Any, name: str, text: str, handler: Any, names: list[str]) -> argparse.ArgumentParser:  # fmt: skip
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    parser.add_argument("client", choices=names)
    parser.add_argument("--scope", choices=_SCOPES, help="which of the client's files (default: its first)")  # fmt: skip
    parser.add_argument("-n", "--dry-run", action="store_true", help="print the change as a diff")
    parser.set_defaults(handler=handler)
    return parser


def _find(args: argparse.Namespace) -> tuple[Client, Scope, Place] | int:
    client = CLIENTS[args.client]
    scope: Scope = args.scope or next(iter(client.files))
    if scope not in client.files:
        return _fail(f"{client.title} has no {scope} scope; it has: {', '.join(client.files)}")
    return client, scope, client.place(scope, Path.cwd())


def _register(args: argparse.Namespace) -> int:
    from ...policies import PolicyError, load_policy
    from .entries import is_ours, serve_entry
    from .files import ClientFileError, read_servers

    found = _find(args)
    if isinstance(found, int):
        return found
    client, scope, place = found
    if args.workspace is not None and not args.workspace.is_dir():
        return _fail(f"workspace {args.workspace} is not a directory; create it or name another")
    try:
        load_policy(args.profile, project=args.workspace or Path.cwd())
        entry = serve_entry(client, scope, args.profile, args.workspace)
        there = read_servers(client, place).get(args.name)
    except (PolicyError, ValueError, ClientFileError) as error:
        return _fail(str(error))
    if there is not None and not is_ours(there):
        return _fail(
            f"{place.file} has another server named {args.name!r}; choose a name: --name NAME"
        )
    return _apply(args, client, place, {args.name: entry}, f"{args.name} is registered in")


def _import(args: argparse.Namespace) -> int:
    from ...policies import PolicyError, load_policy
    from .entries import SERVER_PROFILE, command_of, is_ours, url_of, wrapped
    from .files import ClientFileError, read_servers

    found = _find(args)
    if isinstance(found, int):
        return found
    client, scope, place = found
    try:
        load_policy(args.profile, project=Path.cwd())
        servers = read_servers(client, place)
    except (PolicyError, ClientFileError) as error:
        return _fail(str(error))
    if missing := [name for name in args.only or () if name not in servers]:
        return _fail(f"{place.file} has no server {missing[0]!r}; it has: {', '.join(servers)}")
    entries: dict[str, Any | None] = {}
    for name, entry in servers.items():
        if args.only and name not in args.only:
            continue
        new = wrapped(client, scope, _mapping(entry), args.profile)
        if new is None:
            why = (
                "already behind Purple"
                if is_ours(entry)
                else "its token is the client's: left as it is"
            )
            print(f"{name}: {why}")
            continue
        command, arguments = command_of(_mapping(entry))
        remote = url_of(client, _mapping(entry)) if not command else None
        print(f"{name}: {remote[0] if remote else shlex.join([command, *arguments])}")
        if remote and not any(key in _mapping(entry) for key in ("headers", "http_headers")):
            print(
                f"{'':{len(name)}}  if it asks for a login, leave it to the client: Purple has none"
            )
        only = remote is not None and args.profile == SERVER_PROFILE
        under = "the rule that it is all that is reached" if only else f"profile {args.profile}"
        print(f"{'':{len(name)}}  under {under}: {shlex.join(command_line(new))}")
        entries[name] = new
    if not entries:
        print(f"{place.file}: no server to take")
        return 0
    if not (args.yes or args.dry_run) and not _agreed():
        return _fail("nothing was changed", 1)
    return _apply(args, client, place, entries, "their servers are behind Purple now:")


def command_line(entry: Mapping[str, Any]) -> list[str]:
    """What the client will run."""
    return [entry["command"], *entry["args"]]


def _unregister(args: argparse.Namespace) -> int:
    from .entries import is_ours, unwrapped
    from .files import ClientFileError, read_servers

    found = _find(args)
    if isinstance(found, int):
        return found
    client, _, place = found
    try:
        servers = read_servers(client, place)
    except ClientFileError as error:
        return _fail(str(error))
    entries = {
        name: unwrapped(_mapping(entry)) for name, entry in servers.items() if is_ours(entry)
    }
    if not entries:
        print(f"{place.file}: Purple is not there")
        return 0
    return _apply(args, client, place, entries, "Purple is no longer in")


def _undo(args: argparse.Namespace) -> int:
    from .files import ClientFileError, undo

    try:
        change = undo(CLIENTS[args.client])
    except ClientFileError as error:
        return _fail(str(error))
    print(change.diff(), end="")
    print(f"{change.file} is as it was")
    return 0


def _bundle(args: argparse.Namespace) -> int:
    from ...policies import PolicyError, load_policy
    from .mcpb import write_bundle

    try:
        load_policy(args.profile, project=Path.cwd())
        write_bundle(args.output, args.profile)
    except PolicyError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{args.output} cannot be written: {error.strerror}")
    print(args.output)
    return 0


def _apply(
    args: argparse.Namespace, client: Client, place: Place, entries: Mapping[str, Any | None],
    done: str,
) -> int:  # fmt: skip
    from .files import ClientFileError, plan, write

    try:
        change = plan(client, place, entries)
        if change.is_empty:
            print(f"{place.file}: nothing to change")
        elif args.dry_run:
            print(change.diff(), end="")
        else:
            backup = write(change)
            print(f"{done} {place.file} (before: {backup}; purple undo {client.name})")
            print(f"Restart {client.title} to use it.")
    except ClientFileError as error:
        return _fail(str(error))
    return 0


def _mapping(entry: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], entry) if isinstance(entry, Mapping) else {}


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print("purple: say --yes to do this without being asked", file=sys.stderr)
        return False
    return input("Change the file? [y/N] ").strip().lower() in ("y", "yes")


def _fail(message: str, status: int = 2) -> int:
    from ...gateway.cli import fail

    return fail(message, status)
