"""Package runners inside a sandbox: what `npx` and `uvx` need to start a server from a cache they may only read.

Theory of operation
    A sandbox's HOME is its own and empty; a profile grants the caller's cache for reading, so that no
    server changes what another one, or the caller, will run. `uvx` is pointed at the cache and asks to
    write its lock file alone. `npx` writes into its cache whatever it does (it compacts an index as
    it reads it, and locks the folder of the package), so it gets one in the sandbox's HOME, made
    of links to the caller's packages and a copy of the index. Nothing is downloaded.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..isolation.errors import CommandNotFound, IsolationError

# $0 is the caller's cache; what follows is the command.
_NPX = """
if [ -d "$0/_cacache/content-v2" ] && mkdir -p ~/.npm/_cacache ~/.npm/_npx; then
    ln -s "$0/_cacache/content-v2" ~/.npm/_cacache/
    cp -r "$0/_cacache/index-v5" ~/.npm/_cacache/
    for from in "$0"/_npx/*/; do
        to=~/.npm/_npx/$(basename "$from")
        mkdir "$to" && ln -s "$from/node_modules" "$to/" && cp "$from"/package*.json "$to/"
    done
fi
exec "$@"
"""


def adapted(
    argv: Sequence[str], env: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """The command and its variables as they are to run in a sandbox; the same for any other command.

    Args:
        argv: The command.
        env: Added to the policy's environment for it; wins over what is added here.
        environment: The caller's, which says where its caches are.
    """
    home = Path(environment.get("HOME") or Path.home())
    name = Path(argv[0]).name
    if name == "npx":
        cache = environment.get("npm_config_cache") or str(home / ".npm")
        return ["/bin/sh", "-c", _NPX, cache, *argv], dict(env or {})
    if name in ("uv", "uvx"):
        cache = environment.get("UV_CACHE_DIR") or str(home / ".cache" / "uv")
        pythons = environment.get("UV_PYTHON_INSTALL_DIR") or str(home / ".local/share/uv/python")
        return list(argv), {"UV_CACHE_DIR": cache, "UV_PYTHON_INSTALL_DIR": pythons, **(env or {})}
    return list(argv), dict(env or {})


def remedy(
    argv: Sequence[str], error: IsolationError, environment: Mapping[str, str] = os.environ
) -> str:
    """What to do first where `argv` cannot start in a sandbox, to stand behind `error`'s text; "" for nothing.

    Args:
        argv: The command.
        error: Of the sandbox that was to run it.
        environment: The caller's, which says where its programs are.
    """
    if isinstance(error, CommandNotFound):
        found = shutil.which(argv[0], path=environment.get("PATH"))
        if "/" in argv[0] or found is None:
            return ""
        return f"; here it is {found}: grant that (filesystem.read) and name it by this path"
    name, text = Path(argv[0]).name, str(error)
    if "does not exist" not in text:
        return ""
    if name == "npx" and ".npm" in text:
        return f"; fill the cache first, outside: {shlex.join(argv)} </dev/null"
    if name in ("uv", "uvx") and ".cache/uv" in text:
        return f"; fill the cache first, outside: {shlex.join(argv)} --help"
    return ""
