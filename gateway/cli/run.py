"""`purple run -p PROFILE -- CMD…`: a command on the caller's own terminal, in a sandbox."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...isolation import Engine, Result
    from ...policies import Policy
    from ..audit import AuditLog

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "run",
        help="run a command in a sandbox",
        description="Standard streams, terminal, signals and exit status pass through.",
    )
    parser.add_argument("-p", "--profile", default="code-assistant", help="name or path")
    parser.add_argument("-w", "--workspace", default=".", help="directory it sees (default: here)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD…")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit status described in `purple --help`."""
    from ...policies import PolicyError, PolicySource
    from . import fail
    from .policy import in_force

    command: list[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        return fail("no command; write: purple run -p PROFILE -- CMD ARGS…")
    workspace = Path(args.workspace)
    if not workspace.is_dir():
        return fail(f"workspace {workspace} is not a directory; create it or name another")
    try:
        policy = in_force(PolicySource(name=args.profile, project=workspace))
    except PolicyError as error:
        return fail(str(error))
    from ...isolation import CommandNotFound, Engine, IsolationError
    from ..audit import AuditLog, default_path

    async def go() -> int:
        log = AuditLog(default_path())
        try:
            async with Engine(policy, workspace) as engine:
                return _status(await _recorded(log, policy, engine, command), policy)
        finally:
            log.close()

    try:
        return asyncio.run(go())
    except OSError as error:
        return fail(f"cannot write the audit log: {error}; nothing has run", 125)
    except CommandNotFound as error:
        return fail(str(error), 126 if error.code == "EACCES" else 127)
    except IsolationError as error:
        return fail(str(error), 125)


async def _recorded(log: AuditLog, policy: Policy, engine: Engine, command: list[str]) -> Result:
    """Run it and leave a record, as any tool call does. The person asked: no rule judges it."""
    from ..audit.record import recorded_arguments

    audit = policy.audit
    call_id = log.begin({
        "tool": "run", "client": "cli", "policy": policy.name, "policy_version": policy.digest,
        "effect": "allow", "rule": "tools.default", "decision_reason": "the person's own command",
        "arguments": recorded_arguments({"argv": command}, audit.arguments, audit.redact),
        "enforcement": engine.enforcement.to_json(),
    })  # fmt: skip
    end: dict[str, Any] = {"reason": "operation_failed"}
    try:
        result = await _run(engine, command)
        reason = result.reason if result.reason in ("timed_out", "out_of_memory") else "completed"
        end = {"reason": reason, "wall_seconds": round(result.wall_seconds, 4), **result.facts()}
        return result
    finally:
        log.end(call_id, end)


async def _run(engine: Engine, command: list[str]) -> Result:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in _FORWARDED:
        loop.add_signal_handler(number, signals.put_nowait, int(number))
    outer = next((fd for fd in (0, 1, 2) if os.isatty(fd)), None)
    if outer is None:
        return await engine.run_with(command, (0, 1, 2), signals=signals)
    from .terminal import Relay

    # The payload never gets the caller's terminal, where it could type (TIOCSTI): it has one of
    # the sandbox's own, relayed.
    with Relay(outer) as relay:
        result = await engine.run_with(command, (0, 1, 2), signals=signals, terminal=relay.connect)
        relay.drain()
        return result


def _status(result: Result, policy: Policy) -> int:
    from ..tools.notes import connections

    for sentence in connections(result, policy):
        # A program inside chose some of its words; the terminal is the person's.
        shown = "".join(c if c.isprintable() else "?" for c in sentence)
        print(f"purple: {shown}", file=sys.stderr)
    for limit in result.limits:
        if limit.effect != "slowed":
            print(f"purple: {limit.sentence()}", file=sys.stderr)
    if result.reason == "timed_out":
        return 124
    if result.reason == "out_of_memory":
        return 137
    if result.exit_code is not None:
        return result.exit_code
    with contextlib.suppress(ValueError):
        print(f"purple: ended by {signal.Signals(result.signal or 9).name}", file=sys.stderr)
    return 128 + (result.signal or 9)
