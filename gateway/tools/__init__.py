"""The built-in tools: `definition` says what one is, `shell` and `files` are they; `notes` explains
to the model what a sandbox has stopped."""

from __future__ import annotations

from .definition import BuiltIn, ToolDefinition
from .files import FILES
from .shell import SHELL

TOOLS: dict[str, BuiltIn] = {tool.definition.name: tool for tool in (SHELL, *FILES)}

__all__ = ["TOOLS", "BuiltIn", "ToolDefinition"]
