"""From a Python function to what a sandbox needs to run it. Host side; nothing is pickled.

By source where that is whole: the function's own text, without its decorators (they have taken it
already), and what it refers to: imports by name, plain values as JSON, functions and classes of the
same module by their own source. So a function of a script goes without the script, and one of a
module without what the module imports for others. Otherwise by import of its module, which makes live
objects anew. What goes neither way is refused when the tool is wrapped, with both reasons.
"""

from __future__ import annotations

import ast
import dis
import importlib
import inspect
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .values import NotPlain, encode

# What every module has of its own.
_OWN = frozenset(vars(types.ModuleType("module"))) | {"__builtins__", "__annotations__"}


class NotShippable(TypeError):
    """A function that cannot run in a sandbox; the text says why and what to do."""


class Shipment:
    """One function, ready to travel.

    Args:
        function: A plain or async function.
        home: Module whose classes go by source, too, where they can; "" is the function's.

    Raises:
        NotShippable: it goes neither by source nor by import.
    """

    def __init__(self, function: Callable[..., Any], home: str = "") -> None:
        self._imports: dict[str, tuple[str, str]] = {}
        self._values: dict[str, Any] = {}
        self._sources: list[str] = []
        self._done: dict[int, str] = {}
        self._means: dict[str, Any] = {}  # also keeps what `_done` knows by id alive
        self._name = "function"
        self._home = home or getattr(function, "__module__", "")
        self._unwrap = False
        try:
            self._name = self._function(function)
        except _No as by_source:
            try:
                found = _importable(function)
            except _No as by_import:
                name = getattr(function, "__qualname__", repr(function))
                raise NotShippable(
                    f"{name} cannot run in a sandbox: by its source not, because {by_source}; by "
                    f"import not, because {by_import}"
                ) from None
            self._imports, self._values, self._sources = {self._name: found}, {}, []
            self._done.clear()
            self._means.clear()
            self._unwrap = True

    def request(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """What inside.py reads, for one call.

        Raises:
            NotPlain: an argument does not go through the wall.
        """
        encoded = encode([list(positional), dict(named)], self._class_name)
        return {
            "function": self._name, "unwrap": self._unwrap, "imports": self._imports,
            "values": self._values, "sources": self._sources, "arguments": encoded,
            "path": [path or os.getcwd() for path in sys.path],
        }  # fmt: skip

    def _class_name(self, kind: type) -> str:
        try:
            return self._class(kind)
        except _No as error:
            raise NotPlain(f"an argument is a {kind.__qualname__}, and {error}") from error

    def _function(self, function: Callable[..., Any]) -> str:
        if not isinstance(function, types.FunctionType):
            raise _No(f"it is a {type(function).__name__}, not a function written with def")
        if id(function) in self._done:
            return self._done[id(function)]
        tree = _parsed(function.__code__)  # the function itself would be unwrapped first
        if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            raise _No("it is a lambda; write it with def")
        code = function.__code__
        if tree.name != code.co_name:
            raise _No("its source is not at hand")
        if any(isinstance(node, ast.Nonlocal) for node in ast.walk(tree)):
            raise _No("it changes a variable of the function around it (nonlocal)")
        self._claim(tree.name, function)
        _strip(tree)
        defaults = [*tree.args.defaults, *(d for d in tree.args.kw_defaults if d is not None)]
        wanted = dict.fromkeys(_globals_of(code))
        for node in defaults:
            wanted.update(dict.fromkeys(_names(node)))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._global(name, cell.cell_contents, function.__module__)
        for name in wanted:
            if name in function.__globals__ and name not in code.co_freevars:
                self._global(name, function.__globals__[name], function.__module__)
        self._sources.append(ast.unparse(tree))
        return tree.name

    def _class(self, kind: type) -> str:
        if id(kind) in self._done:
            return self._done[id(kind)]
        # A class of the function's own module goes as the function does; others as they are.
        ways = [self._class_by_import, self._class_by_source]
        if kind.__module__ == self._home:
            ways.reverse()
        before = self._imports, self._values, self._sources, self._done, self._means
        why = ""
        for way in ways:
            self._imports, self._values, self._done, self._means = (
                dict(before[0]), dict(before[1]), dict(before[3]), dict(before[4]),
            )  # fmt: skip
            self._sources = list(before[2])
            try:
                way(kind)
            except _No as no:
                why = f"{why}; {no}" if why else str(no)
            else:
                return kind.__name__
        self._imports, self._values, self._sources, self._done, self._means = before
        raise _No(why)

    def _class_by_import(self, kind: type) -> None:
        home = _importable(kind)
        self._claim(kind.__name__, kind)
        self._imports[kind.__name__] = home

    def _class_by_source(self, kind: type) -> None:
        tree = _parsed(kind)
        if not isinstance(tree, ast.ClassDef):
            raise _No(f"the source of class {kind.__name__} is not at hand")
        self._claim(kind.__name__, kind)
        module = vars(sys.modules[kind.__module__])
        for wanted in _names(tree):
            if wanted in module and module[wanted] is not kind:
                self._global(wanted, module[wanted], kind.__module__)
        self._sources.append(ast.unparse(tree))

    def _global(self, name: str, value: Any, home: str) -> None:
        """Make `name` mean `value` inside."""
        if name in _OWN:
            return
        if isinstance(value, types.FunctionType) and value.__module__ == home:
            self._called(name, self._function(value))
            return
        if isinstance(value, type) and value.__module__ == home:
            self._called(name, self._class(value))
            return
        self._claim(name, value)
        if isinstance(value, types.ModuleType):
            if value.__name__ == "__main__":
                raise _No(f"it refers to the script itself ({name})")
            self._imports[name] = (value.__name__, "")
        else:
            try:
                self._values[name] = encode(value, _no_objects)
            except NotPlain:
                try:
                    self._imports[name] = _importable(value)
                except _No:
                    kind = f"{type(value).__module__}.{type(value).__qualname__}"
                    raise _No(
                        f"it refers to {name}, a live object ({kind}) of this process; make it "
                        "inside the function"
                    ) from None

    def _called(self, name: str, real: str) -> None:
        if name != real:
            raise _No(f"it calls {real} by another name ({name})")

    def _claim(self, name: str, value: Any) -> None:
        if name in self._means and self._means[name] is not value:
            raise _No(f"two things are called {name}")
        self._means[name] = value
        if isinstance(value, type | types.FunctionType):
            self._done[id(value)] = name


class _No(Exception):
    """Why one way does not work."""


def _no_objects(kind: type) -> str:
    raise NotPlain(f"{kind.__qualname__} is made before its class is there")


def _importable(thing: Any) -> tuple[str, str]:
    """Module and dotted path by which `thing` is found."""
    module = getattr(thing, "__module__", None)
    path = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        raise _No("it has no name of its own")
    if module == "__main__":
        raise _No("its module is the script that was started; move it to a module of its own")
    if "<" in path:
        raise _No(f"it is made inside another function ({path})")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not thing and thing not in _kept(found):
        raise _No(f"{module}.{path} is something else by now")
    return module, path


def _kept(found: Any) -> list[Any]:
    """What a tool object keeps of its function; as `undecorated` of inside.py."""
    return [getattr(found, name, None) for name in ("func", "coroutine", "function")]


def _parsed(thing: Any) -> ast.AST:
    try:
        text = textwrap.dedent(inspect.getsource(thing))
        return ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError, IndexError) as error:
        raise _No("its source is not at hand") from error


def _strip(tree: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Take out what is not needed to run it: decorators and annotations."""
    tree.decorator_list.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """Names that the code, and what is nested in it, takes from its module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
