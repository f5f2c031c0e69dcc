"""A file operation, asked of an interpreter inside a sandbox that holds fileops.py and waits for one."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import inside
from .command import Commands
from .errors import CommandNotFound, OperationError, SetupError
from .execution import Execution, Shared
from .pool import Ready
from .result import Result
from .seccomp import compile_operation_filter

if TYPE_CHECKING:
    from ..policies import Grant

_MAX_BYTES = 64 << 20  # of an answer
_MAX_ERROR_BYTES = 4096


def have_interpreter(ready: Ready, commands: Commands) -> None:
    """Start an interpreter in a sandbox whose stdin is a pipe: it reads one question from there."""
    ready.stdout.keep_bytes = _MAX_BYTES
    ready.stderr.keep_bytes = _MAX_ERROR_BYTES
    python = os.path.realpath(sys.executable)
    ready.started.order(commands.order([python, "-I", "-S", "-c", inside.program()]))


class Operation:
    """One of fileops.py's.

    Args:
        name: Of the operation.
        arguments: As it takes them.
        grant: What of the policy it keeps; None keeps all.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], grant: Grant | None) -> None:
        self._name = name
        self._grant = grant
        asked = {"operation": name, "arguments": dict(arguments), "grant": _kept(grant)}
        self._question = json.dumps(asked).encode()

    async def carry_out(self, shared: Shared, ready: Ready, late: Callable[[], None]) -> Result:
        """Have it done where there is an interpreter; `late` as of `Execution.carry_out`.

        Raises:
            OperationError: as of `Engine.call`; EIO where it was ended before it had answered.
            SetupError: there is no interpreter, or the sandbox could not be closed around it.
        """
        ready.write_stdin(self._question)
        execution = Execution(
            shared, ready.started, ready.marks, sys.executable, outputs=(ready.stdout, ready.stderr)
        )
        try:
            result = await execution.carry_out(None, late)
        except CommandNotFound as error:
            raise SetupError(f"file tools need Python inside the sandbox: {error}") from error
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            said = result.stderr.decode(errors="replace")[-200:]
            raise OperationError(
                "EIO", f"{self._name} was ended: {result.reason} {said}".rstrip()
            ) from None
        if "code" in answer:
            raise OperationError(answer["code"], answer["message"])
        narrowed = None
        if self._grant is not None:
            narrowed = {**self._grant.to_json(), "landlock_abi": answer["landlock_abi"]}
        return dataclasses.replace(
            result, value=answer["value"], narrowed=narrowed, stdout=b"", stdout_bytes=0
        )


def _kept(grant: Grant | None) -> dict[str, Any] | None:
    """A grant for narrowing.py; None keeps all."""
    if grant is None or grant.scope != "call":
        return None
    program = compile_operation_filter(writes=bool(grant.write), connects=bool(grant.hosts))
    return {
        "read": grant.read, "write": grant.write, "filter": base64.b64encode(program).decode()
    }  # fmt: skip
