"""The program of the interpreter that does one operation inside a sandbox.

Its view does not hold this package: the modules that it needs go along as code. Standard library only.
"""

from __future__ import annotations

import base64
import marshal
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
package.fileops.main()
"""


@cache
def program() -> str:
    """For `python -c`, of the same interpreter as this one: compiled here, once."""
    here = Path(__file__).parent
    modules = [
        (name, compile((here / f"{name}.py").read_text(), f"inside/{name}.py", "exec"))
        for name in _MODULES
    ]
    return _START.format(modules=base64.b64encode(marshal.dumps(modules)).decode())
