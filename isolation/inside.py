"""The program of the interpreter that does one operation inside a sandbox.

Its view does not hold this package: the modules that it needs go along as code. Standard library only.
"""

from __future__ import annotations

import base64
import marshal
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_MODULES = ("libc", "landlock", "narrowing", "fetch", "fileops")
_START = """\
import base64, marshal, sys, types
package = sys.modules["inside"] = types.ModuleType("inside")
package.__path__ = []
for name, code in marshal.loads(base64.b64decode("{modules}")):
    module = sys.modules["inside." + name] = types.ModuleType("inside." + name)
    module.__package__ = "inside"
    setattr(package, name, module)
    exec(code, module.__dict__)
"""


@cache
def program() -> str:
    """For `python -c`, of the same interpreter as this one: compiled here, once."""
    return bundle(_MODULES, "package.fileops.main()")


def bundle(names: Sequence[str], start: str) -> str:
    """A program of modules of this package that import one another and the standard library alone.

    Args:
        names: As files here without their suffix, those first that others import.
        start: A line of Python; `package` has them as attributes.
    """
    here = Path(__file__).parent
    modules = [
        (Path(name).name, compile((here / f"{name}.py").read_text(), f"inside/{name}.py", "exec"))
        for name in names
    ]
    packed = base64.b64encode(marshal.dumps(modules)).decode()
    return f"{_START.format(modules=packed)}{start}\n"
