"""`purple profile accept`: what a project brings is used from now on, as it is now."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import argparse

    from ...policies import Policy

_REFERENCE = re.compile(r"\$\{(?:command|file|secret):")


def add_parser(actions: Any) -> None:
    """Add the action to `purple profile`."""
    action: argparse.ArgumentParser = actions.add_parser(
        "accept", help="use a profile that a project brings",
        description="Prints what it would change, and accepts the files of the project that it is "
        "made of, as they are now. One that changes is to be accepted again.",
    )  # fmt: skip
    action.add_argument("name")
    action.add_argument(
        "--project", type=Path, default=Path(), metavar="DIR", help="default: the current directory"
    )
    action.add_argument("--yes", action="store_true", help="do not ask")


def accept(args: argparse.Namespace) -> int:
    """Carry out the action; 1 when nothing was accepted. Raises `PolicyError`."""
    from ...policies import read_policy, trust
    from ..approvals.question import visible
    from . import fail

    policy, brought = read_policy(args.name, project=args.project)
    pending = [file for file in brought if file.state != "accepted"]
    if not brought:
        return fail(f"{args.name} has nothing of a project; it needs not be accepted", 1)
    if not pending:
        print(f"{args.name} is accepted as it is")
        return 0
    for file in pending:
        print(f"{visible(str(file.path))} ({file.state})")
    for line in _words(args.name, policy):
        print(visible(line))
    if not args.yes:
        if not sys.stdin.isatty():
            return fail("nobody can be asked here, and nothing was accepted; add --yes", 1)
        print("Accept? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was accepted")
            return 1
    trust.accept(pending)
    print(f"accepted; {args.name} is used as it is now")
    return 0


def _words(name: str, policy: Policy) -> Iterator[str]:
    """What the policy is, against the one that would be in its place."""
    from ...policies import PolicyError, load_policy
    from ...policies.diff import diff

    try:
        other, what = load_policy(name), "the one of this name that is yours or shipped"
    except PolicyError:
        other, what = load_policy("shipped:base"), "shipped:base"
    yield f"Against {what}:"
    yield from [f"  {change}" for change in diff(other, policy)] or ["  allows the same"]
    if policy.description != other.description:
        yield f"  tells the model: {policy.description}"
    references = list(_references(policy.model_dump(mode="json", by_alias=True), ""))
    if references:
        yield "The gateway itself reads or runs, outside any sandbox:"
        yield from references


def _references(value: object, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from _references(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _references(inner, f"{key}[{index}]")
    elif isinstance(value, str) and _REFERENCE.search(value):
        yield f"  {value} ({key})"
