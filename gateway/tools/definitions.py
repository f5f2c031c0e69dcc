"""Names, schemas and annotations of the built-in tools, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """One built-in tool. Annotations are MCP's, in wire spelling."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    annotations: dict[str, bool]


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _integer(description: str, minimum: int = 0) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "description": description}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "description": description}


def _object(properties: dict[str, Any], required: list[str], *, closed: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if closed:
        schema["additionalProperties"] = False
    return schema


_PATH = {"type": "string", "minLength": 1, "description": "relative to the workspace, or absolute"}
_TRUNCATED = _flag("whether there is more than is returned")
_READ = {"readOnlyHint": True, "openWorldHint": False}


def _write(*, destructive: bool, idempotent: bool = False) -> dict[str, bool]:
    return {
        "readOnlyHint": False,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": False,
    }


def _tool(
    name: str,
    title: str,
    description: str,
    inputs: tuple[dict[str, Any], list[str]],
    outputs: dict[str, Any],
    annotations: dict[str, bool],
) -> ToolDefinition:
    return ToolDefinition(
        name=name,
        title=title,
        description=description,
        input_schema=_object(*inputs, closed=True),
        output_schema=_object(outputs, list(outputs), closed=False),
        annotations=annotations,
    )


_SHELL_OUTPUT: dict[str, Any] = {
    "exit_code": {"type": ["integer", "null"]},
    "signal": {"type": ["integer", "null"]},
    "reason": {"type": "string"},
    "stdout": {"type": "string"},
    "stderr": {"type": "string"},
    "truncated": _TRUNCATED,
    "wall_seconds": {"type": "number"},
    "notes": {"type": "array", "items": {"type": "string"}},
    "enforcement": {"type": "object"},
}

TOOLS: dict[str, ToolDefinition] = {
    tool.name: tool
    for tool in (
        _tool(
            "shell",
            "Run a command",
            "Run a shell command in a sandbox: the workspace and system software are visible, the "
            "rest of the host is not, and there is no network unless the policy grants it. Nothing "
            "that it starts outlives it.",
            (
                {
                    "command": {"type": "string", "minLength": 1, "description": "for /bin/sh -c"},
                    "cwd": _string("directory to run in; default: the workspace"),
                    "timeout_seconds": {"type": "number", "exclusiveMinimum": 0},
                },
                ["command"],
            ),
            _SHELL_OUTPUT,
            _write(destructive=True),
        ),
        _tool(
            "read_file",
            "Read a file",
            "Read a text file, whole or `limit` lines from line `offset` (0-based).",
            (
                {
                    "path": _PATH,
                    "offset": _integer("lines to skip"),
                    "limit": _integer("lines to return", 1),
                },
                ["path"],
            ),
            {
                "path": _string(""),
                "content": _string(""),
                "lines": _integer(""),
                "size_bytes": _integer(""),
                "truncated": _TRUNCATED,
            },
            _READ,
        ),
        _tool(
            "write_file",
            "Write a file",
            "Create a file or replace all of it; missing directories are made.",
            ({"path": _PATH, "content": _string("the whole new content")}, ["path", "content"]),
            {"path": _string(""), "bytes_written": _integer(""), "created": _flag("")},
            _write(destructive=True, idempotent=True),
        ),
        _tool(
            "edit_file",
            "Edit a file",
            "Replace a text that is in the file exactly once, or everywhere with replace_all.",
            (
                {
                    "path": _PATH,
                    "old_text": _string("exact text to replace"),
                    "new_text": _string("what to put there"),
                    "replace_all": _flag("replace every occurrence"),
                },
                ["path", "old_text", "new_text"],
            ),
            {"path": _string(""), "replacements": _integer("")},
            _write(destructive=True),
        ),
        _tool(
            "list_directory",
            "List a directory",
            "Names, kinds and sizes, sorted by name.",
            ({"path": _PATH}, []),
            {"path": _string(""), "entries": {"type": "array"}, "truncated": _TRUNCATED},
            _READ,
        ),
        _tool(
            "find_files",
            "Find files",
            "Files whose name or path matches a glob, such as *.py or src/**/test_*.py.",
            ({"pattern": {"type": "string", "minLength": 1}, "path": _PATH}, ["pattern"]),
            {"paths": {"type": "array"}, "truncated": _TRUNCATED},
            _READ,
        ),
        _tool(
            "search_text",
            "Search in files",
            "Lines that match a regular expression (Python's), in files whose name matches `glob`.",
            (
                {
                    "pattern": {"type": "string", "minLength": 1},
                    "path": _PATH,
                    "glob": _string("such as *.py"),
                },
                ["pattern"],
            ),
            {"matches": {"type": "array"}, "truncated": _TRUNCATED, "skipped_files": _integer("")},
            _READ,
        ),
        _tool(
            "move",
            "Move or rename",
            "Move a file or directory; an existing destination is refused unless overwrite.",
            (
                {
                    "source": _PATH,
                    "destination": _PATH,
                    "overwrite": _flag("replace the destination"),
                },
                ["source", "destination"],
            ),
            {"source": _string(""), "destination": _string("")},
            _write(destructive=True),
        ),
        _tool(
            "delete",
            "Delete",
            "Remove a file or link, or a directory (a full one with recursive).",
            ({"path": _PATH, "recursive": _flag("a directory with all it holds")}, ["path"]),
            {"path": _string(""), "kind": _string("")},
            _write(destructive=True),
        ),
    )
}
