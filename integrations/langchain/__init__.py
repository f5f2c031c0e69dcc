"""LangChain and LangGraph: `pip install 'purplebox[langchain]'`.

`sandboxed` makes any tool of plain Python run in a sandbox; `PurpleToolkit` has Purple's own tools;
`PurpleMiddleware` puts every tool call of an agent through the gateway, whoever runs it;
`PurpleExecutionPolicy` runs the shell of LangChain's `ShellToolMiddleware` in a sandbox. All take the
same `purplebox.Gateway`.
"""

from __future__ import annotations

from ..functions import NotShippable
from .errors import ToolCallError
from .middleware import PurpleMiddleware
from .sandboxed import sandboxed
from .shell import PurpleExecutionPolicy
from .toolkit import PurpleToolkit

__all__ = [
    "NotShippable",
    "PurpleExecutionPolicy",
    "PurpleMiddleware",
    "PurpleToolkit",
    "ToolCallError",
    "sandboxed",
]
