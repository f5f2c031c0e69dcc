"""The command `purple`. One module a verb group; none imports what it does not need at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import approvals, audit, doctor, login, pins, profile, ps, run, serve, wrap

EXIT_STATUSES = """\
exit statuses: 0 done; 1 a check found something; 2 wrong usage, policy or workspace; 124 the
time-out ended the command; 125 the sandbox could not be built; 126 the command may not be executed;
127 there is no such command inside; 128+N signal N ended it (137: killed, also at the memory limit);
any other is the command's own."""


def build_parser(more: Callable[[Any], None] | None = None) -> argparse.ArgumentParser:
    """The whole command line; `more` adds the verbs of packages above this one."""
    parser = argparse.ArgumentParser(
        prog="purple",
        description="Decide, sandbox and record every tool call of an LLM agent.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for module in (serve, wrap, login, run, ps, profile, approvals, pins, audit, doctor):
        module.add_parser(verbs)
    if more is not None:
        more(verbs)
    return parser


def main(
    arguments: Sequence[str] | None = None, *, more: Callable[[Any], None] | None = None
) -> int:
    """Run one verb; returns its exit status."""
    parser = build_parser(more)
    args = parser.parse_args(arguments)
    if args.version:
        from purplebox import __version__

        print(__version__)
        return 0
    if args.verb is None:
        parser.print_help()
        return 2
    try:
        status: int = args.handler(args)
        return status
    except BrokenPipeError:  # `purple audit tail | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def fail(message: str, status: int = 2) -> int:
    """Print a sentence for the person on stderr; returns `status`."""
    print(f"purple: {message}", file=sys.stderr)
    return status
