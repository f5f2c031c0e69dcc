"""The built-in tools: names, schemas, annotations. What they do is in `isolation.fileops` and, for
`shell`, in `shell`."""

from __future__ import annotations

from .definitions import TOOLS, ToolDefinition

__all__ = ["TOOLS", "ToolDefinition"]
