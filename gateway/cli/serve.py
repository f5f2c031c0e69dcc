"""`purple serve`: the MCP server on stdio."""

from __future__ import annotations

import argparse
import asyncio
import os
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
    parser.add_argument(
        "--http", metavar="HOST:PORT",
        help="serve streamable HTTP there instead; PURPLE_HTTP_TOKEN is the bearer token it asks for",
    )  # fmt: skip
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
    http = None
    where = "stdio"
    if args.http is not None:
        host, _, port = args.http.rpartition(":")
        token = os.environ.get("PURPLE_HTTP_TOKEN", "")
        if not port.isdigit() or not host:
            return fail(f"--http {args.http}: write HOST:PORT, as in 127.0.0.1:8000")
        if not token and host not in ("127.0.0.1", "localhost", "[::1]"):
            return fail("beyond loopback a token is needed: set PURPLE_HTTP_TOKEN")
        http = host.strip("[]"), int(port), token
        where = args.http
    from ...isolation import IsolationError
    from ..server import serve_tools

    print(f"purple: serving {workspace.resolve()} under {policy.name} on {where}", file=sys.stderr)
    try:
        asyncio.run(serve_tools(policy, workspace, servers, http=http))
    except PolicyError as error:
        return fail(str(error))
    except IsolationError as error:
        return fail(str(error), 125)
    except OSError as error:
        return fail(f"cannot write the audit log, or cannot listen: {error}")
    return 0
