"""The program that runs one Python function inside a sandbox. It follows values.py in one text.

The request names the function by its source, with all that it refers to, or by its module; arguments
come with it. The answer is the only thing on the descriptor that was stdout; what the function
prints goes to stderr. Standard library only, and as little of it as can be: it starts at every call.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
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
        text = f"from __future__ import annotations\n{source}\n"
        exec(compile(text, f"<source {number}>", "exec"), names)
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
        if callable(inner):
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
        if hasattr(value, "__await__"):
            value = importlib.import_module("asyncio").run(_awaited(value))
        phase = "result"
        reply = {"value": encode(value)}
    except (Exception, SystemExit) as error:
        reply = {"phase": phase, "error": type(error).__name__, "message": str(error)}
        reply["line"] = line_of(error, request["sources"])
    json.dump(reply, answer)
    answer.flush()
    sys.stdout.flush()
    os._exit(0)  # threads that the function left do not hold its answer back


def line_of(error: BaseException, sources: list[str]) -> str:
    """The line that raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is None:
        return ""
    name = at.tb_frame.f_code.co_filename
    if name.startswith("<source "):
        lines = sources[int(name[8:-1])].splitlines()
        return lines[at.tb_lineno - 2].strip()  # the future import is the first line
    return str(importlib.import_module("linecache").getline(name, at.tb_lineno)).strip()


async def _awaited(value: Any) -> Any:
    return await value


def _make(kind: Any, fields: dict[str, Any] | None) -> Any:
    """An object of an argument, its class where there are no fields; a model's are valid already."""
    if fields is None:
        return kind
    return getattr(kind, "model_construct", kind)(**fields)
