"""The program that runs one Python function inside a sandbox. It follows values.py in one text.

The request names the function by its source, with all that it refers to, or by its module; arguments
come with it. The answer is the only thing on the descriptor that was stdout; what the function
prints goes to stderr. Standard library only.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import linecache
import os
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .values import decode, encode

VARIABLE = "PURPLE_FUNCTION"
_MODULE = "__purple__"


def build(request: dict[str, Any]) -> dict[str, Any]:
    """The names that the function and its arguments refer to, `function` among them."""
    module = types.ModuleType(_MODULE)
    sys.modules[_MODULE] = module  # dataclasses and pydantic look their module up
    names = module.__dict__
    for name, (home, path) in request["imports"].items():
        names[name] = look_up(home, path)
    for name, value in request["values"].items():
        names[name] = decode(value)
    for number, source in enumerate(request["sources"]):
        # annotations stay texts: they may name what only type checkers need
        text, name = f"from __future__ import annotations\n{source}\n", f"<source {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # for tracebacks
        exec(compile(text, name, "exec"), names)
    return names


def look_up(module: str, path: str) -> Any:
    """`path` (dotted; "" is the module itself) in `module`."""
    found: Any = importlib.import_module(module)
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found


def undecorated(found: Any) -> Any:
    """The function in a tool: what LangChain's, pydantic-ai's and the like keep of it."""
    for attribute in ("func", "coroutine", "function"):
        inner = getattr(found, attribute, None)
        if inspect.isroutine(inner):
            return inner
    return found


def main() -> None:
    """Do what is asked for; the answer is one JSON object."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    text = os.environ.pop(VARIABLE, None)
    request = json.loads(text if text is not None else sys.stdin.read())
    sys.path[:] = request["path"]
    sys.dont_write_bytecode = True
    reply: dict[str, Any]
    phase = "load"
    try:
        names = build(request)
        function = names[request["function"]]
        if request["unwrap"]:
            function = undecorated(function)
        positional, named = decode(
            request["arguments"], lambda kind, fields: _make(names[kind], fields)
        )
        phase = "call"
        value = function(*positional, **named)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        phase = "result"
        reply = {"value": encode(value)}
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reply = {"phase": phase, "error": type(error).__name__, "message": str(error)}
        reply["line"] = last.line or ""
    json.dump(reply, answer)
    answer.flush()
    sys.stdout.flush()
    os._exit(0)  # threads that the function left do not hold its answer back


async def _awaited(value: Any) -> Any:
    return await value


def _make(kind: Any, fields: dict[str, Any] | None) -> Any:
    """An object of an argument, its class where there are no fields; a model's are valid already."""
    if fields is None:
        return kind
    return getattr(kind, "model_construct", kind)(**fields)
