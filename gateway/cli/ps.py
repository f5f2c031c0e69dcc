"""`purple ps`: the running gateways of this user, how the servers behind them fare, and what runs in the background."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

_ERROR_CHARACTERS = 200
_COMMAND_CHARACTERS = 100


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "ps",
        help="running gateways, the health of the servers behind them, processes in the background",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each gateway")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Show them; 1 when a server waits to be started again or a changed policy was refused."""
    from ..approvals.channel import ChannelError, statuses
    from . import fail

    try:
        found = list(statuses())
    except ChannelError as error:
        return fail(str(error), 1)
    for status in found:
        print(json.dumps(status) if args.json else _shown(status))
    if not found and not args.json:
        print("no gateway is running")
    return 1 if any(map(_ails, found)) else 0


def _ails(status: dict[str, Any]) -> bool:
    waits = any(server["state"] == "waiting" for server in status["servers"])
    return waits or bool(status["reload_refused"])


def _shown(status: dict[str, Any]) -> str:
    lines = [f"{status['pid']:>7}  {status['gateway']}, up {_time(status['uptime_seconds'])}"]
    if refused := status["reload_refused"]:
        lines.append(f"         policy file refused, the old one is in force: {refused}")
    for server in status["servers"]:
        line = (
            f"         {server['server']:<20} {server['state']:<11} {_time(server['seconds']):>8}"
        )
        line += f"  {server['requests']} requests, {server['failed']} failed"
        line += f", {server['restarts']} restarts"
        lines.append(line + (f"  for {server['client']}" if server["client"] else ""))
        if server["last_error"]:
            lines.append(f"           last: {server['last_error'][:_ERROR_CHARACTERS]}")
    for one in status.get("processes", []):  # an older gateway says nothing of them
        state = "running" if one["running"] else "ended"
        who = "/".join(name for name in (one["client"], one["session"]) if name) or "-"
        since = datetime.fromtimestamp(one["since"]).isoformat(" ", "seconds")
        line = f"         {one['process_id']:<20} {state:<11} {_time(one['wall_seconds']):>8}"
        line += f"  since {since}, for {who}, {one['policy']}: "
        lines.append(line + " ".join(one["command"].split())[:_COMMAND_CHARACTERS])
    # What servers and clients call themselves is theirs; a terminal is not.
    return "\n".join("".join(c if c.isprintable() else "�" for c in line) for line in lines)


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
