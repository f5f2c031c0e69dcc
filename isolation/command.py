"""What execve(2) will be given: a command as it is called for, in the form in which pid 1 takes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import pid1
from .errors import CommandNotFound
from .plan import HOME, PRIVATE, Plan

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # os.fsencode


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is ready for execve(2).

    Attributes:
        programs: Paths, of which the first that can be executed is.
        argv: Its arguments.
        variables: Its environment: `NAME=value`.
        directory: Where it starts; "" for the usual place.
    """

    programs: Sequence[str]
    argv: Sequence[str]
    variables: Sequence[str]
    directory: str

    def order(self, terminal: str = "") -> bytes:
        """As pid 1 reads it. Raises `CommandNotFound` as `Commands.order` does."""
        variables = "".join(f"{variable}\0" for variable in self.variables)
        programs = "\0".join(self.programs)
        return _order(
            self.argv, len(self.variables), variables, self.directory, terminal,
            len(self.programs), programs,
        )  # fmt: skip


class Commands:
    """Makes of commands what the sandboxes of one plan execute.

    It does not look for the program: pid 1 tries what PATH names, as execvp(3) does, so that what is
    visible, and what may be executed, the kernel decides, inside. `find` looks from outside.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._home = plan.workspace or HOME
        usual = {**plan.environment, "PWD": self._home}
        self._count = len(usual)
        self._variables = "".join(f"{name}={value}\0" for name, value in usual.items())
        # What a name stands between, where PATH is the usual one: "DIRECTORY/NAME\0DIRECTORY/NAME".
        # An empty one is the working directory: execvp(3).
        self._directories = usual["PATH"].split(":")
        self._around = [f"{directory or self._home}/" for directory in self._directories]
        self._around = [self._around[0], *(f"\0{before}" for before in self._around[1:]), ""]

    def order(
        self, argv: Sequence[str], cwd: str = "", env: Mapping[str, str] | None = None
    ) -> bytes:
        """What pid 1 is to execute.

        Args:
            argv: The command; `argv[0]` without a slash is looked up in PATH.
            cwd: Relative to the workspace (HOME where there is none), or absolute inside; "" is the
                workspace.
            env: Added to the plan's environment.

        Raises:
            CommandNotFound: there is no such directory (ENOENT), nothing to execute (EINVAL), or more
                than fits (E2BIG).
        """
        if cwd or env or not argv or not argv[0] or "/" in argv[0]:
            return self.command(argv, cwd, env).order()
        programs = argv[0].join(self._around)
        return _order(argv, self._count, self._variables, "", "", len(self._directories), programs)

    def command(self, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None) -> Command:
        """The same before it has its form; arguments and errors are those of `order`."""
        if not argv or "\0" in "".join((*argv, cwd)):
            raise _invalid()
        where = os.path.normpath(os.path.join(self._home, cwd)) if cwd else self._home
        if cwd and not (
            where in PRIVATE or (self._plan.shows(where) and os.path.isdir(where))
        ):  # a look from outside, for a good error
            raise CommandNotFound("ENOENT", f"cwd {cwd!r} does not exist in the sandbox (ENOENT)")
        environment = {**self._plan.environment, **(env or {}), "PWD": where}
        name = argv[0]
        if not name:
            raise not_found(name, "ENOENT")
        return Command(
            # As it stands: what "link/.." is, and that "file/" is none, the kernel knows.
            programs=(
                [os.path.join(where, name)]
                if "/" in name
                else [os.path.join(where, place, name) for place in environment["PATH"].split(":")]
            ),
            argv=argv,
            variables=["=".join(item) for item in environment.items()],
            directory=where if cwd else "",
        )

    def find(self, command: Command) -> str:
        """Which of its programs will be executed, by a look from outside.

        Raises:
            CommandNotFound: there is none (ENOENT), or none that may be executed (EACCES).
        """
        for path in command.programs:
            if os.access(path, os.X_OK) and self._is_shown(path):
                return path
        there = any(map(self._is_shown, command.programs))
        raise not_found(command.argv[0], "EACCES" if there else "ENOENT")

    def _is_shown(self, path: str) -> bool:
        return self._plan.shows(path) and os.path.isfile(path)


def _order(
    argv: Sequence[str], count: int, variables: str, directory: str, terminal: str, paths: int,
    programs: str,
) -> bytes:  # fmt: skip
    text = "\0".join(argv)
    strings = f"{text}\0{variables}{directory}\0{terminal}\0{programs}\0".encode(_ENCODING, _ERRORS)
    if strings.count(0) != len(argv) + count + 2 + paths:
        raise _invalid()
    try:
        return pid1.order(len(argv), count, paths, strings)
    except ValueError as error:
        raise not_found(argv[0], "E2BIG") from error


def _invalid() -> CommandNotFound:
    return CommandNotFound(
        "EINVAL", "the command is empty, or a NUL character is in it or in its environment"
    )


def not_found(name: str, code: str) -> CommandNotFound:
    """The error for a command that execve(2) or the look before it refused with `code`."""
    why = {
        "EACCES": "may not be executed",
        "ENOENT": "is not in the sandbox's view",
        "E2BIG": "is too long; put it into a file",
    }.get(code, "cannot be executed")
    return CommandNotFound(code, f"command {name[:200]!r} {why} ({code})")
