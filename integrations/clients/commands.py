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
_TOKEN_STAYS = "its token is the client's: left as it is"


def add_parsers(verbs: Any) -> None:
    """Add the verbs."""
    names = sorted(CLIENTS)
    register = _verb(verbs, "register", "have a client use Purple's tools", _register, names)
    register.add_argument("-p", "--profile", default="code-assistant", help="name of a profile")
    register.add_argument("-w", "--workspace", type=Path, help="directory (default: the open project)")  # fmt: skip
    register.add_argument("--name", default="purple", help="the server's name in the client")
    take = _verb(verbs, "import", "take a client's servers behind Purple", _import, names)
    take.add_argument("-p", "--profile", default="", help="profile of each server (default: by its command)")  # fmt: skip
    take.add_argument("-w", "--workspace", type=Path, help="directory that each sees (default: the open project)")  # fmt: skip
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
    workspace: Path | None = getattr(args, "workspace", None)
    if workspace is not None and not workspace.is_dir():
        return _fail(f"workspace {workspace} is not a directory; create it or name another")
    return client, scope, client.place(scope, Path.cwd())


def _register(args: argparse.Namespace) -> int:
    from ...policies import PolicyError, load_policy
    from .entries import is_ours, serve_entry
    from .files import ClientFileError, read_servers

    found = _find(args)
    if isinstance(found, int):
        return found
    client, scope, place = found
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
    from .files import ClientFileError, read_servers

    found = _find(args)
    if isinstance(found, int):
        return found
    client, scope, place = found
    try:
        if args.profile:
            load_policy(args.profile, project=args.workspace or Path.cwd())
        servers = read_servers(client, place)
        if missing := [name for name in args.only or () if name not in servers]:
            return _fail(f"{place.file} has no server {missing[0]!r}; it has: {', '.join(servers)}")
        entries = {
            name: new
            for name, entry in servers.items()
            if not args.only or name in args.only
            if (new := _taken(args, client, scope, name, _mapping(entry)))
        }
    except (PolicyError, ValueError, ClientFileError) as error:
        return _fail(str(error))
    if not entries:
        print(f"{place.file}: no server to take")
        return 0
    if not (args.yes or args.dry_run) and not _agreed():
        return _fail("nothing was changed", 1)
    return _apply(args, client, place, entries, "their servers are behind Purple now:")


def _taken(
    args: argparse.Namespace, client: Client, scope: Scope, name: str, entry: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A server's new entry, or None where it stays as it is; says which. Raises `ValueError`."""
    from .entries import SERVER_PROFILE, command_of, is_ours, profile_of, url_of, wrapped

    new = wrapped(client, scope, entry, args.profile, name=name, workspace=args.workspace)
    if new is None:
        ours = is_ours(entry)
        print(f"{name}: {'already behind Purple' if ours else _TOKEN_STAYS}")
        return None
    command, arguments = command_of(entry)
    remote = url_of(client, entry) if not command else None
    print(f"{name}: {remote[0] if remote else shlex.join([command, *arguments])}")
    margin = " " * (len(name) + 2)
    if remote and not any(key in entry for key in ("headers", "http_headers")):
        print(f"{margin}if it asks for a login, leave it to the client: Purple has none")
    under = f"profile {args.profile or profile_of(command, arguments)}"
    if remote and args.profile in ("", SERVER_PROFILE):
        under = "the rule that it is all that is reached"
    print(f"{margin}under {under}: {shlex.join(command_line(new))}")
    if command and (why := _cannot_start([command, *arguments], args)):
        print(f"{margin}as things are it will not start: {why}")
    return new


def _cannot_start(argv: list[str], args: argparse.Namespace) -> str:
    """Why a sandbox could not start this server now; "" where it can."""
    from ...gateway.runners import remedy
    from ...isolation import IsolationError
    from ...isolation.command import Commands
    from ...isolation.plan import compile_plan
    from ...policies import load_policy
    from .entries import profile_of

    here = args.workspace or Path.cwd()
    if args.workspace is None and here == Path.home():  # no project
        here = None
    policy = load_policy(args.profile or profile_of(argv[0], argv[1:]), project=here or Path.cwd())
    try:
        commands = Commands(compile_plan(policy, here))
        commands.find(commands.command(argv, "", None))
    except IsolationError as error:
        return f"{error}{remedy(argv, error)}"
    return ""


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
