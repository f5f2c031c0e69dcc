"""`purple serve`: the MCP server on stdio."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "serve", help="serve the sandboxed tools to an MCP client on stdin and stdout"
    )
    parser.add_argument("-p", "--profile", default="code-assistant", help="name or path")
    parser.add_argument(
        "-w", "--workspace", default=".", help="directory the tools see (default: here)"
    )
    parser.add_argument(
        "--config", type=Path, help="file of tool servers to put behind (mcpServers)"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Serve until stdin closes."""
    from ...policies import PolicyError, load_policy
    from . import fail

    workspace = Path(args.workspace)
    if not workspace.is_dir():
        return fail(f"workspace {workspace} is not a directory; create it or name another")
    try:
        policy = load_policy(args.profile, project=workspace)
    except PolicyError as error:
        return fail(str(error))
    from ..config import ConfigError, load_servers

    try:
        servers = load_servers(args.config) if args.config is not None else []
    except ConfigError as error:
        return fail(str(error))
    from ...isolation import IsolationError
    from ..server import serve_tools

    print(f"purple: serving {workspace.resolve()} under {policy.name} on stdio", file=sys.stderr)
    try:
        asyncio.run(serve_tools(policy, workspace, servers))
    except PolicyError as error:
        return fail(str(error))
    except IsolationError as error:
        return fail(str(error), 125)
    except OSError as error:
        return fail(f"cannot write the audit log: {error}")
    return 0
