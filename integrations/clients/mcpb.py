"""An MCPB bundle: Purple as an extension that a client installs from one file.

A zip with `manifest.json` (manifest version 0.4, server type `uv`): the client asks for a workspace
and a profile, and uv installs the `purplebox` named in the bundle's pyproject.toml.
Source: the MCPB manifest specification.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from purplebox import __version__

from ...gateway.tools import TOOLS

_EPOCH = (2020, 1, 1, 0, 0, 0)  # the same input gives the same bytes
_MAIN = '''"""Started by the client through uv: see manifest.json."""

import sys

from purplebox.integrations.cli import main

sys.exit(main())
'''


def manifest(profile: str) -> dict[str, Any]:
    """`manifest.json`, with `profile` as the default of what the person is asked."""
    run = ["run", "--directory", "${__dirname}", "server/main.py", "serve"]
    asked = ["-p", "${user_config.profile}", "-w", "${user_config.workspace}"]
    return {
        "manifest_version": "0.4",
        "name": "purplebox",
        "display_name": "Purple",
        "version": __version__,
        "description": "Shell and file tools in a Linux sandbox: decided, contained and recorded.",
        "author": {"name": "Purple"},
        "license": "MIT",
        "server": {
            "type": "uv",
            "entry_point": "server/main.py",
            "mcp_config": {"command": "uv", "args": [*run, *asked]},
        },
        "tools": [
            {"name": tool.definition.name, "description": tool.definition.description}
            for tool in TOOLS.values()
        ],
        "compatibility": {"platforms": ["linux"], "runtimes": {"python": ">=3.11"}},
        "user_config": {
            "workspace": {
                "type": "directory",
                "title": "Workspace",
                "description": "The directory that the tools see.",
                "required": True,
            },
            "profile": {
                "type": "string",
                "title": "Profile",
                "description": "What the tools may do: `purple profile list` shows what there is.",
                "default": profile,
                "required": False,
            },
        },
    }


def write_bundle(path: Path, profile: str) -> None:
    """Write the bundle. Raises `OSError`; an older file stays until the new one is whole."""
    project = (
        f'[project]\nname = "purplebox-bundle"\nversion = "{__version__}"\n'
        f'requires-python = ">=3.11"\ndependencies = ["purplebox=={__version__}"]\n'
    )
    files = {
        "manifest.json": json.dumps(manifest(profile), indent=2, ensure_ascii=False) + "\n",
        "pyproject.toml": project,
        "server/main.py": _MAIN,
    }
    temporary = path.with_name(path.name + ".new")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, text in files.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                bundle.writestr(entry, text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
