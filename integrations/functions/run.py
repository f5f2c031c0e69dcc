"""Carrying out a call of a Python function in a sandbox of the call's policy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...gateway.calls import Call, Ran, Run, Version, text_result
from ...gateway.reasons import Reason
from ...gateway.tools.notes import notes
from ...isolation import IsolationError
from . import inside, values

if TYPE_CHECKING:
    from ...isolation import Result
    from .ship import Shipment

# What one variable may hold, execve(2) MAX_ARG_STRLEN, with room. Longer requests go by stdin, to a
# sandbox that has not been made ready.
_VARIABLE_BYTES = 100_000
Parse = Callable[[Mapping[str, Any]], tuple[Sequence[Any], dict[str, Any]]]
_REASONS = {"timed_out": Reason.TIMED_OUT, "out_of_memory": Reason.OUT_OF_MEMORY}
RESULT = "result"
_CAST = "cast = lambda kind, value: value"


def in_sandbox(shipment: Shipment, parse: Parse) -> Run:
    """What runs the function in a sandbox; its value is `structuredContent.result`.

    Args:
        shipment: The function.
        parse: From the call's arguments, JSON as judged, to what the function takes, by position
            and by name; `ValueError` and `TypeError` say that they do not fit.
    """

    async def run(call: Call, version: Version) -> Ran:
        try:
            request = json.dumps(shipment.request(*parse(call.arguments)))
        except (ValueError, TypeError) as error:
            return _failed(Reason.INVALID_ARGUMENTS, f"{call.tool} cannot be called: {error}", {})
        python = os.path.realpath(sys.executable)
        argv = [python, "-I", "-S", "-c", _program()]
        short = len(request) < _VARIABLE_BYTES
        try:
            result = await version.engine.run(
                argv,
                env={inside.VARIABLE: request} if short else None,
                stdin=b"" if short else request.encode(),
                session=(call.client, call.session),
            )
        except IsolationError as error:
            return _failed(Reason.SANDBOX_UNAVAILABLE, f"Not run: {error}", {})
        return _ran(call.tool, result, version)

    return run


def value_of(result: dict[str, Any]) -> Any:
    """What the function returned, from a CallToolResult that `in_sandbox` made.

    Raises:
        KeyError: it has none: a stage has withheld it.
        ValueError: it is not what the sandbox's side writes.
    """
    return values.decode(cast("dict[str, Any]", result["structuredContent"])[RESULT])


@cache
def _program() -> str:
    """values.py and inside.py as one text for `python -c`."""
    lines = [
        line
        for module in (values, inside)
        for line in Path(module.__file__ or "").read_text().splitlines()
        if not line.startswith(("from __future__ ", "from typing "))
    ]
    # typing takes as long to import as all else here, and has nothing to say at run time.
    start = ["from __future__ import annotations", "Any, TYPE_CHECKING = None, False", _CAST]
    return "\n".join([*start, *lines, "main()\n"])


def _ran(tool: str, result: Result, version: Version) -> Ran:
    facts = result.facts()
    reply: dict[str, Any] = {}
    text = result.stdout.decode("utf-8", "replace")
    if result.reason not in _REASONS and result.exit_code == 0:
        try:
            reply = json.loads(text)
        except ValueError:
            if result.truncated:
                return _failed(
                    Reason.OPERATION_FAILED,
                    f"{tool} returned more than may leave its sandbox ({result.stdout_bytes} bytes; "
                    f"rule resources.output_limit of policy {version.policy.name})",
                    facts,
                )
    if "value" in reply:
        value = reply["value"]
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return Ran(result=text_result(shown, {RESULT: value}), facts=facts)
    # The function's own error may be the sandbox's doing; its message is in stdout here.
    said = "".join(f" [{n}]" for n in notes(reply.get("message", ""), result, version))
    if "error" in reply:
        before = {"load": "could not be loaded in its sandbox", "result": "has no plain result"}
        what = before.get(reply["phase"], "failed")
        line = f" (at: {reply['line']})" if reply["line"] else ""
        why = f"{tool} {what}: {reply['error']}: {reply['message']}{line}"
        if reply["error"] == "ModuleNotFoundError":
            why += (
                f". It is not visible under policy {version.policy.name}; grant its directory "
                "(filesystem.read) or install it for this Python"
            )
        return _failed(Reason.OPERATION_FAILED, why + said, facts)
    end = f"exit status {result.exit_code}" if result.signal is None else f"signal {result.signal}"
    last = result.stderr.decode("utf-8", "replace").strip()[-300:]
    why = f"{tool} was ended ({end}): {last}{said}"
    return _failed(_REASONS.get(result.reason, Reason.OPERATION_FAILED), why, facts)


def _failed(reason: Reason, text: str, facts: dict[str, Any]) -> Ran:
    return Ran(result=text_result(text, is_error=True), reason=reason, facts=facts)
