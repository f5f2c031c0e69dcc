"""`purple pins show | diff | accept | forget`: what tool servers may not change without a person."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pins.store import Server


def add_parser(verbs: Any) -> None:
    """Add the verb group."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "pins", help="see and accept what tool servers have changed"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("show", "every server that was seen, and how much of it is withheld"),
        ("diff", "what has changed since it was accepted; 1 when something has"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("server", nargs="?", help="its name (default: every server)")
    accept = actions.add_parser("accept", help="accept what a server has changed")
    accept.add_argument("server")
    accept.add_argument(
        "digest", nargs="?", help="as `diff` prints it: what was looked at is what is accepted"
    )
    forget = actions.add_parser("forget", help="forget a server: it is pinned anew as it is then")
    forget.add_argument("server")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    from ..pins import PinError, PinStore
    from . import fail

    store = PinStore()
    try:
        servers = store.read()
        found = _find(servers, args.server)
        if args.server and not found:
            names = ", ".join(sorted({s.name for s in servers.values()})) or "none"
            return fail(f"no server {args.server} is pinned; there are: {names}", 1)
        if args.action == "show":
            return _show(found)
        if args.action == "diff":
            return _diff(found)
        if len(found) > 1:
            keys = "\n  ".join(sorted(found))
            return fail(f"several servers have this name; write one of\n  {keys}", 1)
        ((key, server),) = found.items()
        if args.action == "forget":
            store.update(lambda servers: _drop(servers, key))
            print(f"{server.name} is forgotten")
            return 0
        return _accept(store, key, server, args.digest)
    except PinError as error:
        return fail(str(error), 1)


def _drop(servers: dict[str, Server], key: str) -> None:
    servers.pop(key, None)


def _find(servers: Any, wanted: str | None) -> dict[str, Server]:
    if wanted is None:
        return dict(servers)
    return {k: s for k, s in servers.items() if wanted in (k, s.name)}


def _show(found: dict[str, Server]) -> int:
    from ..approvals.question import visible

    for key, server in sorted(found.items()):
        since = time.strftime("%Y-%m-%d", time.localtime(server.since))
        counts = ", ".join(f"{len(d)} {kind}" for kind, d in server.accepted.items())
        withheld = sum(map(len, server.pending.values()))
        state = (
            f"{withheld} withheld: purple pins diff {server.name}" if withheld else "as accepted"
        )
        print(f"{visible(server.name)}  since {since}  {counts}  {state}")
        print(f"  {visible(key)}")
    if not found:
        print("no server has been seen")
    return 0


def _diff(found: dict[str, Server]) -> int:
    changed = {key: server for key, server in found.items() if any(server.pending.values())}
    for key, server in sorted(changed.items()):
        print("\n".join(_lines(key, server)))
        print(f"To accept: purple pins accept {server.name} {_digest(server)}")
    if not changed:
        print("everything is as accepted")
    return 1 if changed else 0


def _lines(key: str, server: Server) -> Iterator[str]:
    from ..approvals.question import visible

    for kind, definitions in server.pending.items():
        accepted = server.accepted.get(kind, {})
        for name, now in definitions.items():
            before = accepted.get(name)
            title = visible(f"{kind} {name}" if name else kind)
            yield f"server {visible(server.name)}: {title} " + (
                "has changed" if name in accepted else "is new"
            )
            # A new name for what is known by another.
            same = [n for n, d in accepted.items() if n != name and _content(d) == _content(now)]
            if same:
                yield f"  it is the same as {visible(same[0])}, under another name"
            lines = difflib.unified_diff(
                _pretty(before) if name in accepted else [], _pretty(now),
                "accepted", "now", lineterm="", n=3,
            )  # fmt: skip
            yield from (visible(line) for line in lines)


def _accept(store: Any, key: str, server: Server, digest: str | None) -> int:
    from . import fail

    if not any(server.pending.values()):
        print("everything is as accepted")
        return 0
    if digest is None:
        print("\n".join(_lines(key, server)))
        if not sys.stdin.isatty():
            return fail(
                f"say what you have looked at: purple pins accept {server.name} {_digest(server)}",
                1,
            )
        print("Accept? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was accepted")
            return 1
        digest = _digest(server)
    taken = False

    def change(servers: dict[str, Server]) -> None:
        nonlocal taken
        now = servers.get(key)
        if now is None or _digest(now) != digest:
            return
        for kind, definitions in now.pending.items():
            now.accepted.setdefault(kind, {}).update(definitions)
        now.pending = {}
        taken = True

    store.update(change)
    if not taken:
        return fail(
            f"the changes are others than {digest} by now; look again: purple pins diff {server.name}",
            1,
        )
    print(f"accepted; {server.name} is served as it is now")
    return 0


def _digest(server: Server) -> str:
    text = json.dumps(server.pending, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pretty(definition: Any) -> list[str]:
    if isinstance(definition, str):
        return definition.splitlines()
    return json.dumps(definition, indent=1, sort_keys=True, ensure_ascii=False).splitlines()


def _content(definition: Any) -> Any:
    from ..wire.jsonrpc import is_object

    if not is_object(definition):
        return None
    return {k: v for k, v in definition.items() if k not in ("name", "uri", "uriTemplate", "title")}
