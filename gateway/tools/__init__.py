"""The built-in tools: `definition` says what one is, `shell`, `files`, `http` and `processes` are they;
`notes` explains to the model what a sandbox has stopped."""

from __future__ import annotations

from .definition import BuiltIn, ToolDefinition
from .files import FILES
from .http import HTTP_REQUEST
from .processes import PROCESSES
from .shell import SHELL

TOOLS: dict[str, BuiltIn] = {
    tool.definition.name: tool for tool in (SHELL, *FILES, HTTP_REQUEST, *PROCESSES)
}

__all__ = ["TOOLS", "BuiltIn", "ToolDefinition"]
