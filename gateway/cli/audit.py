"""`purple audit tail | verify`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb group."""
    parser: argparse.ArgumentParser = verbs.add_parser("audit", help="read and verify the record")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    tail = actions.add_parser("tail", help="the newest calls, a line each")
    tail.add_argument("-n", type=_count, default=20, help="how many (default 20)")
    tail.add_argument("--json", action="store_true", help="the entries as they are")
    check = actions.add_parser("verify", help="check the hash chain; 1 when it is broken")
    for action in (tail, check):
        action.add_argument("--path", type=Path, help="the log (default: the user's own)")
    parser.set_defaults(handler=run)


def _count(text: str) -> int:
    """A number of lines. Raises `ArgumentTypeError`."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is no number of lines")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    from ..audit import default_path, verify
    from ..audit.log import entries
    from . import fail

    path: Path = args.path or default_path()
    try:
        if args.action == "verify":
            report = verify(path)
            for problem in report.problems:
                print(f"{path}: {problem}")
            for call_id in report.interrupted:
                print(f"call {call_id}: begun, never ended (the gateway was killed)")
            state = "BROKEN" if report.problems else "intact"
            calls = "1 call" if report.calls == 1 else f"{report.calls} calls"
            print(f"{calls}, {report.lines} lines, chain {state}")
            return 1 if report.problems else 0
        if args.json:
            lines = [json.dumps(entry) for _, entry in entries(path) if entry is not None]
            for line in lines[max(0, len(lines) - args.n) :]:
                print(line)
        else:
            begun: dict[str, dict[str, Any]] = {}
            for _, entry in entries(path):
                if entry is not None:
                    begun.setdefault(str(entry.get("call_id")), {}).update(entry)
            for entry in list(begun.values())[max(0, len(begun) - args.n) :]:
                print(_line(entry))
    except OSError as error:
        return fail(f"cannot read {path}: {error.strerror}; nothing has been recorded there yet?")
    return 0


def _line(entry: dict[str, Any]) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(entry.get("time", 0))))
    fields = [
        stamp,
        str(entry.get("call_id", ""))[:8],
        f"{server}/{entry.get('tool')}" if (server := entry.get("server")) else entry.get("tool"),
        entry.get("effect"),
        entry.get("rule"),
    ]
    state = "waits for approval" if entry.get("event") == "pending" else "interrupted"
    ended = entry.get("event") in ("end", "task")
    status = f" (exit status {code})" if (code := entry.get("exit_code")) else ""
    fields.append(f"{entry.get('reason', '-')}{status}" if ended else state)
    fields.append(json.dumps(entry.get("arguments")))
    text = "  ".join("-" if field is None else str(field) for field in fields)
    # Arguments are JSON in ASCII; a tool's name could still carry terminal codes.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
