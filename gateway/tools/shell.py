"""The tool `shell`: a command line in a sandbox of its own."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

from ...isolation import CommandNotFound, IsolationError
from ..call import Ran, text_result
from ..reasons import Reason
from .definition import BuiltIn, ToolDefinition, array, closed, flag, outputs, string, writes
from .notes import notes

if TYPE_CHECKING:
    from ...isolation import Result
    from ..call import Call, Version

_REASONS = {"timed_out": Reason.TIMED_OUT, "out_of_memory": Reason.OUT_OF_MEMORY}

DEFINITION = ToolDefinition(
    name="shell",
    title="Run a command",
    description=(
        "Run a shell command in a sandbox: the workspace and system software are visible, the rest "
        "of the host is not, and there is no network unless the policy grants it. Nothing that it "
        "starts outlives it."
    ),
    input_schema=closed(
        {
            "command": string("for /bin/sh -c", minLength=1),
            "cwd": string("directory to run in; default: the workspace"),
            "timeout_seconds": {"type": "number", "exclusiveMinimum": 0},
        },
        ["command"],
    ),
    output_schema=outputs(
        exit_code={"type": ["integer", "null"]},
        signal={"type": ["integer", "null"]},
        reason=string("exited, signaled, timed_out or out_of_memory"),
        stdout=string("its first bytes, as UTF-8"),
        stderr=string("its first bytes, as UTF-8"),
        truncated=flag("whether more was written than is returned"),
        wall_seconds={"type": "number"},
        notes=array(string("what the sandbox stopped, by which rule")),
        enforcement={"type": "object"},
    ),
    annotations=writes(),
)


async def run(call: Call, version: Version) -> Ran:
    """Run `command`; its exit status is in the result, not an error of the gateway."""
    arguments = call.arguments
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}  # fmt: skip

    def on_output(name: str, data: bytes) -> None:
        if call.progress is not None:
            call.progress(decoders[name].decode(data))

    command: str = arguments["command"]
    asked = arguments.get("cwd")
    cwd = version.rules.place.shown(asked) if asked else ""
    cwd = "" if cwd == "." else cwd
    try:
        result = await version.engine.run(
            ["/bin/sh", "-c", command],
            cwd=cwd,
            wall_seconds=arguments.get("timeout_seconds"),
            on_output=on_output,
            session=(call.client, call.session),
        )
    except CommandNotFound as error:
        return Ran(result=text_result(str(error), is_error=True), reason=Reason.COMMAND_NOT_FOUND)
    except IsolationError as error:
        text = f"Not run: {error}"
        return Ran(result=text_result(text, is_error=True), reason=Reason.SANDBOX_UNAVAILABLE)
    content = _structured(result, notes(command, result, version, cwd))
    reason = _REASONS.get(result.reason, Reason.COMPLETED)
    failed = reason is not Reason.COMPLETED or result.exit_code != 0
    return Ran(
        result=text_result(_text(content), content, is_error=failed),
        reason=reason,
        facts=result.facts(),
    )


def _structured(result: Result, said: list[str]) -> dict[str, Any]:
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "reason": result.reason,
        "stdout": result.stdout.decode("utf-8", "replace"),
        "stderr": result.stderr.decode("utf-8", "replace"),
        "truncated": result.truncated,
        "wall_seconds": round(result.wall_seconds, 4),
        "notes": said,
        "enforcement": result.enforcement.to_json(),
    }


def _text(content: dict[str, Any]) -> str:
    """The same for clients that read text only."""
    parts = [content["stdout"], content["stderr"]]
    if content["exit_code"] is None:
        parts.append(f"[{content['reason']}, signal {content['signal']}]")
    elif content["exit_code"]:
        parts.append(f"[exit status {content['exit_code']}]")
    parts += [f"[{note}]" for note in content["notes"]]
    return "\n".join(part.rstrip("\n") for part in parts if part)


SHELL = BuiltIn(definition=DEFINITION, run=run)
