"""What execve(2) will be given: a command looked up in the sandbox's view, before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import CommandNotFound
from .plan import HOME, PRIVATE, Plan


@dataclass(frozen=True, kw_only=True)
class Command:
    """Program, arguments and environment, ready for execve(2); `directory` is "" for the usual one."""

    program: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str


def resolve(plan: Plan, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None) -> Command:
    """Find the program as execvp(3) does, among what the plan makes visible.

    Args:
        plan: Of the sandbox.
        argv: The command; `argv[0]` without a slash is looked up in PATH.
        cwd: Relative to the workspace (HOME where there is none), or absolute inside; "" is the
            workspace.
        env: Added to the plan's environment.

    Raises:
        CommandNotFound: there is no such program or directory (ENOENT), none that may be executed
            (EACCES), or nothing to execute (EINVAL).

    This is a look from outside, for a good error; what may be executed is decided inside.
    """
    if not argv or "\0" in "".join((*argv, cwd)):
        raise CommandNotFound("EINVAL", "the command is empty or holds a NUL character")
    home = plan.workspace or HOME
    where = os.path.normpath(os.path.join(home, cwd)) if cwd else home
    if cwd and not (where in PRIVATE or (plan.shows(where) and os.path.isdir(where))):
        raise CommandNotFound("ENOENT", f"cwd {cwd!r} does not exist in the sandbox (ENOENT)")
    environment = {**plan.environment, **(env or {}), "PWD": where}
    program = _find(plan, argv[0], environment["PATH"], where)
    return Command(
        program=program, argv=argv, environment=environment, directory=where if cwd else ""
    )


def _find(plan: Plan, name: str, path: str, where: str) -> str:
    candidates = (
        [os.path.normpath(os.path.join(where, name))]
        if "/" in name
        else [f"{directory}/{name}" for directory in path.split(":")]
    )
    for candidate in candidates:
        # access(2) first: in every call's way are some that are not there.
        if os.access(candidate, os.X_OK) and _is_shown(plan, candidate):
            return candidate
    there = any(_is_shown(plan, candidate) for candidate in candidates)
    raise not_found(name, "EACCES" if there else "ENOENT")


def _is_shown(plan: Plan, path: str) -> bool:
    return plan.shows(path) and os.path.isfile(path)


def not_found(name: str, code: str) -> CommandNotFound:
    """The error for a command that execve(2) or the look before it refused with `code`."""
    why = {
        "EACCES": "may not be executed",
        "ENOENT": "is not in the sandbox's view",
        "E2BIG": "is too long; put it into a file",
    }.get(code, "cannot be executed")
    return CommandNotFound(code, f"command {name[:200]!r} {why} ({code})")
