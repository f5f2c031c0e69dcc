"""The file tools. What they do is in `isolation.fileops`, inside a sandbox: the kernel decides paths."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...isolation import IsolationError, OperationError
from ...policies import Grant
from ...policies.request import BUILT_IN
from ..call import Ran, text_result
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
from .notes import hidden_by, is_hidden, moved_aside

if TYPE_CHECKING:
    from ..call import Call, Version

# What an operation on a path that the policy shows and does not grant fails with.
_REFUSED = ("EACCES", "EROFS", "EPERM")
_PATH = string("relative to the workspace, or absolute", minLength=1)
_TRUNCATED = flag("whether there is more than is returned")
_KIND = string("file, directory, symlink or other")


async def run(call: Call, version: Version) -> Ran:
    """Do the operation of the tool's name in a sandbox."""
    policy = version.policy
    try:
        arguments = _inside(call, version)
        result = await version.engine.call(call.tool, arguments, grant=call.grant)
    except OperationError as error:
        text = f"{call.tool} failed ({error.code}): {error}{_why(call, version, error.code)}"
        return Ran(result=text_result(text, is_error=True), reason=Reason.OPERATION_FAILED)
    except IsolationError as error:
        text = f"Not run: {error}"
        return Ran(result=text_result(text, is_error=True), reason=Reason.SANDBOX_UNAVAILABLE)
    facts = result.facts()
    if undone := moved_aside(result, policy):
        refused = text_result("\n".join(undone), is_error=True)
        return Ran(result=refused, reason=Reason.POLICY_DENIED, facts=facts)
    value: dict[str, Any] = result.value
    text = value["content"] if call.tool == "read_file" else json.dumps(value, ensure_ascii=False)
    return Ran(result=text_result(text, value), facts=facts)


def _why(call: Call, version: Version, code: str) -> str:
    """Which rule an operation failed by; "" where it looks like none."""
    policy, view = version.policy, version.engine.view
    named = (*call.grant.read, *call.grant.write) if call.grant is not None else ()
    if any(is_hidden(path, version) for path in named):
        return f". {hidden_by(policy)}"
    if any(view.beyond(Grant(read=(path,))) is not None for path in named):
        return f". Only what policy {policy.name} grants is visible (rule filesystem.read)."
    if code in _REFUSED:
        return (
            f". Only what policy {policy.name} grants may be written (rules filesystem.write, "
            "filesystem.protect)."
        )
    return ""


def _inside(call: Call, version: Version) -> dict[str, Any]:
    """The arguments as judged; paths in the workspace are relative to it, as answers show them."""
    arguments = dict(call.arguments)
    for name in BUILT_IN[call.tool]:
        if name in arguments:
            arguments[name] = version.rules.place.shown(arguments[name])
    return arguments


def _tool(
    name: str,
    title: str,
    description: str,
    inputs: tuple[dict[str, Any], list[str]],
    output_schema: dict[str, Any],
    annotations: dict[str, bool],
) -> BuiltIn:
    definition = ToolDefinition(
        name=name,
        title=title,
        description=description,
        input_schema=closed(*inputs),
        output_schema=output_schema,
        annotations=annotations,
    )
    return BuiltIn(definition=definition, run=run)


FILES = (
    _tool(
        "read_file",
        "Read a file",
        "Read a text file, whole or `limit` lines from line `offset` (0-based).",
        (
            {
                "path": _PATH,
                "offset": integer("lines to skip"),
                "limit": integer("lines to return", 1),
            },
            ["path"],
        ),
        outputs(
            path=string("as judged, relative to the workspace where it is in it"),
            content=string("the lines"),
            lines=integer("lines returned"),
            size_bytes=integer("of the whole file"),
            truncated=_TRUNCATED,
        ),
        READS,
    ),
    _tool(
        "write_file",
        "Write a file",
        "Create a file or replace all of it; missing directories are made.",
        ({"path": _PATH, "content": string("the whole new content")}, ["path", "content"]),
        outputs(
            path=string("as judged, relative to the workspace where it is in it"),
            bytes_written=integer("of the file"),
            created=flag("whether it is new"),
        ),
        writes(idempotent=True),
    ),
    _tool(
        "edit_file",
        "Edit a file",
        "Replace a text that is in the file exactly once, or everywhere with replace_all.",
        (
            {
                "path": _PATH,
                "old_text": string("exact text to replace"),
                "new_text": string("what to put there"),
                "replace_all": flag("replace every occurrence"),
            },
            ["path", "old_text", "new_text"],
        ),
        outputs(
            path=string("as judged, relative to the workspace where it is in it"),
            replacements=integer("made"),
        ),
        writes(),
    ),
    _tool(
        "list_directory",
        "List a directory",
        "Names, kinds and sizes, sorted by name.",
        ({"path": _PATH}, []),
        outputs(
            path=string("as judged, relative to the workspace where it is in it"),
            entries=array(outputs(name=string(""), kind=_KIND, size_bytes=integer(""))),
            truncated=_TRUNCATED,
        ),
        READS,
    ),
    _tool(
        "find_files",
        "Find files",
        "Files whose name or path matches a glob, such as *.py or src/**/test_*.py.",
        ({"pattern": string("a glob", minLength=1), "path": _PATH}, ["pattern"]),
        outputs(paths=array(string("")), truncated=_TRUNCATED),
        READS,
    ),
    _tool(
        "search_text",
        "Search in files",
        "Lines that match a regular expression (Python's), in files whose name matches `glob`.",
        (
            {
                "pattern": string("a regular expression", minLength=1),
                "path": _PATH,
                "glob": string("such as *.py"),
            },
            ["pattern"],
        ),
        outputs(
            matches=array(outputs(path=string(""), line=integer("", 1), text=string(""))),
            truncated=_TRUNCATED,
            skipped_files=integer("very large or unreadable"),
        ),
        READS,
    ),
    _tool(
        "move",
        "Move or rename",
        "Move a file or directory; an existing destination is refused unless overwrite.",
        (
            {"source": _PATH, "destination": _PATH, "overwrite": flag("replace the destination")},
            ["source", "destination"],
        ),
        outputs(
            source=string("as judged, relative to the workspace where it is in it"),
            destination=string("as judged, relative to the workspace where it is in it"),
        ),
        writes(),
    ),
    _tool(
        "delete",
        "Delete",
        "Remove a file or link, or a directory (a full one with recursive).",
        ({"path": _PATH, "recursive": flag("a directory with all it holds")}, ["path"]),
        outputs(path=string("as judged, relative to the workspace where it is in it"), kind=_KIND),
        writes(),
    ),
)
