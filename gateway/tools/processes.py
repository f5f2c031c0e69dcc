"""The tools `process_…`: a command that goes on when the call that started it has returned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError

from ...isolation import CommandNotFound, IsolationError
from ...isolation.cancellation import uncancelled
from ..calls import Ran, Refusal, refused, text_result
from ..processes import MOST
from ..reasons import Reason
from .definition import (
    READS,
    BuiltIn,
    ToolDefinition,
    array,
    closed,
    flag,
    integer,
    outputs,
    string,
    writes,
)
from .notes import notes

if TYPE_CHECKING:
    from ..calls import Call, Version
    from ..processes import Background, Processes

_FIRST_SECONDS, _WAIT_SECONDS, _MOST_WAIT_SECONDS = 1.0, 5.0, 60
_INPUT_SECONDS = 5.0
_ID = string("as process_start returned it", minLength=1)
_WAIT: dict[str, Any] = {
    "type": "number", "minimum": 0, "maximum": _MOST_WAIT_SECONDS,
    "description": "how long to wait for new output; returns as soon as there is some",
}  # fmt: skip
_STATE: dict[str, dict[str, Any]] = {
    "process_id": string("for the other process tools"),
    "running": flag(
        "whether it runs still; when it does not, this is the last that is known of it"
    ),
    "output": string("what it has written since it was last asked, stdout and stderr, as UTF-8"),
    "exit_code": {"type": ["integer", "null"]},
    "signal": {"type": ["integer", "null"]},
    "reason": string("running, exited, signaled, timed_out or out_of_memory"),
    "wall_seconds": {"type": "number"},
    "notes": array(string("what the sandbox stopped, by which rule")),
}
_LISTED: dict[str, dict[str, Any]] = {
    "process_id": string(""),
    "command": string(""),
    "running": flag(""),
    "wall_seconds": {"type": "number"},
    "unread_bytes": integer("of its output"),
}


async def start(call: Call, version: Version) -> Ran:
    """Start a process, and return what it says at first."""
    processes = _of(call)
    asked = call.arguments.get("cwd")
    cwd = version.rules.place.shown(asked) if asked else ""
    seconds = call.arguments.get("timeout_seconds")
    try:
        background = await processes.start(
            call, version, cwd="" if cwd == "." else cwd, wall_seconds=seconds
        )
    except CommandNotFound as error:
        return Ran(result=text_result(str(error), is_error=True), reason=Reason.COMMAND_NOT_FOUND)
    except IsolationError as error:
        text = f"Not run: {error}"
        return Ran(result=text_result(text, is_error=True), reason=Reason.SANDBOX_UNAVAILABLE)
    if background is None:
        return refused(_too_many(version))
    enforcement = version.engine.enforcement.to_json()
    wait = call.arguments.get("wait_seconds", _FIRST_SECONDS)
    try:
        return await _state(call, version, background, wait, enforcement=enforcement)
    except asyncio.CancelledError:  # whoever asked for it will never know its id
        await uncancelled(background.stop("cancellation", at_once=True))
        raise


async def output(call: Call, version: Version) -> Ran:
    """Return what a process has written since, and whether it runs."""
    if (background := _of(call).find(call)) is None:
        return _unknown(call)
    return await _state(
        call, version, background, call.arguments.get("wait_seconds", _WAIT_SECONDS)
    )


async def give_input(call: Call, version: Version) -> Ran:
    """Write to the standard input of a process."""
    if (background := _of(call).find(call)) is None:
        return _unknown(call)
    data: str = call.arguments.get("input", "")
    close: bool = call.arguments.get("close", False)
    try:
        async with asyncio.timeout(_INPUT_SECONDS):
            await background.write(data.encode("utf-8", "surrogatepass"), close=close)
    except TimeoutError:
        return _failed("It does not read its input; how much of this it has taken is not known.")
    except BrokenResourceError:
        return _failed("It reads no input any more; process_output says whether it has ended.")
    except ClosedResourceError:
        return _failed("Its input has been closed.")
    except BusyResourceError:
        return _failed("Another call is giving it input.")
    return await _state(
        call, version, background, call.arguments.get("wait_seconds", _FIRST_SECONDS)
    )


async def stop(call: Call, version: Version) -> Ran:
    """End a process, and return the last of it."""
    if (background := _of(call).find(call)) is None:
        return _unknown(call)
    await background.stop("process_stop", at_once=call.arguments.get("force", False))
    return await _state(call, version, background, 0)


async def show(call: Call, version: Version) -> Ran:
    """List the processes of the session."""
    found = [
        {
            "process_id": one.id, "command": one.command, "running": not one.ended.is_set(),
            "wall_seconds": round(one.wall_seconds, 3), "unread_bytes": one.unread_bytes,
        }
        for one in _of(call).of(call)
    ]  # fmt: skip
    value = {"processes": found}
    return Ran(result=text_result(json.dumps(value, ensure_ascii=False), value))


async def _state(
    call: Call, version: Version, one: Background, wait_seconds: float, **more: Any
) -> Ran:
    text = await one.read(wait_seconds)
    if one.version is not version:  # what is secret may be another; the screens know the newer
        text = one.version.screen.text(text)
    running, result = not one.ended.is_set(), one.result
    said = [str(one.error)] if one.error is not None else []
    if result is not None:
        said += notes(one.command, replace(result, stdout=text.encode()), one.version)
    if one.stopped_by == "policy":
        said.append("Ended: the policy that it ran under has been replaced. Start it again.")
    content = {
        "process_id": one.id,
        "running": running,
        "output": text,
        "exit_code": result.exit_code if result is not None else None,
        "signal": result.signal if result is not None else None,
        "reason": "running" if running else result.reason if result is not None else "exited",
        "wall_seconds": round(one.wall_seconds, 3),
        "notes": said,
        **more,
    }
    if not running:
        _of(call).forget(call, one)
    failed = not running and one.stopped_by != "process_stop" and content["exit_code"] != 0
    return Ran(result=text_result(_text(content), content, is_error=failed), facts={"process_id": one.id})  # fmt: skip


def _text(content: dict[str, Any]) -> str:
    """The same for clients that read text only."""
    how = f"{content['process_id']} is running"
    if not content["running"]:
        how = f"{content['process_id']} has ended: {content['reason']}"
        if content["exit_code"] is not None:
            how = f"{content['process_id']} has ended: exit status {content['exit_code']}"
        elif content["signal"] is not None:
            how += f", signal {content['signal']}"
    parts = [content["output"], f"[{how}]", *(f"[{note}]" for note in content["notes"])]
    return "\n".join(part.rstrip("\n") for part in parts if part)


def _of(call: Call) -> Processes:
    assert call.processes is not None, "process tools are called through a Gateway"
    return call.processes


def _failed(text: str) -> Ran:
    return Ran(result=text_result(text, is_error=True), reason=Reason.OPERATION_FAILED)


def _unknown(call: Call) -> Ran:
    named = str(call.arguments["process_id"])[:100]
    return _failed(f"This session has no process {named!r}; process_list shows those that it has.")


def _too_many(version: Version) -> Refusal:
    most = version.policy.resources.background
    if most == 0:
        return Refusal(
            reason=Reason.POLICY_DENIED, rule="resources.background",
            text=f"Denied by rule resources.background of policy {version.policy.name}: nothing runs in "
            "the background. Use shell.",
        )  # fmt: skip
    return Refusal(
        reason=Reason.RATE_LIMITED, rule="resources.background",
        text=(
            f"Not run: a session has {most} processes at once (rule resources.background of policy "
            f"{version.policy.name}), and the gateway {MOST}. Stop one (process_list, process_stop)."
        ),
        person=f"Raise resources.background of policy {version.policy.name} if this much is meant to run.",
    )  # fmt: skip


def _tool(
    name: str, title: str, description: str, inputs: tuple[dict[str, Any], list[str]],
    run: Callable[[Call, Version], Awaitable[Ran]], *, annotations: dict[str, bool] | None = None,
    output_schema: dict[str, Any] | None = None,
) -> BuiltIn:  # fmt: skip
    definition = ToolDefinition(
        name=name, title=title, description=description, input_schema=closed(*inputs),
        output_schema=output_schema or outputs(**_STATE), annotations=annotations or writes(),
    )  # fmt: skip
    return BuiltIn(definition=definition, run=run)


PROCESSES = (
    _tool(
        "process_start",
        "Start a process",
        "Start a shell command that goes on in the background, such as a server, a watcher or a "
        "prompt, in a sandbox like that of shell. Do not end it with &: it ends with its command. "
        "A TCP port that it listens on is on localhost for shell and the session's other processes, "
        "unless the policy keeps them apart. "
        "It ends with the session, or at the policy's time limit. Of what it writes and nobody asks "
        "for, the last is kept.",
        (
            {
                "command": string("for /bin/sh -c", minLength=1),
                "cwd": string("directory to run in; default: the workspace"),
                "timeout_seconds": {"type": "number", "exclusiveMinimum": 0},
                "wait_seconds": _WAIT,
            },
            ["command"],
        ),
        start,
        output_schema=outputs(**_STATE, enforcement={"type": "object"}),
    ),
    _tool(
        "process_output",
        "Read a process's output",
        "What a process has written since it was last asked, and whether it still runs.",
        ({"process_id": _ID, "wait_seconds": _WAIT}, ["process_id"]),
        output,
        annotations={"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False},
    ),
    _tool(
        "process_input",
        "Write to a process",
        "Give a process input, as it is: a line needs its line end. Returns what it then writes.",
        (
            {
                "process_id": _ID,
                "input": string("the text"),
                "close": flag("then end its input"),
                "wait_seconds": _WAIT,
            },
            ["process_id"],
        ),
        give_input,
    ),
    _tool(
        "process_stop",
        "Stop a process",
        "Ask a process to end (SIGTERM) and end it with all that it has started when it does not in "
        "five seconds; returns its last output.",
        ({"process_id": _ID, "force": flag("end it at once (SIGKILL)")}, ["process_id"]),
        stop,
    ),
    _tool(
        "process_list",
        "List processes",
        "The processes of this session: those that run, and those that have ended since.",
        ({}, []),
        show,
        annotations=READS,
        output_schema=outputs(processes=array(outputs(**_LISTED))),
    ),
)
