"""`purple serve`: the MCP server on stdio."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..wire.rate import MAX_FRAMES_A_SECOND

if TYPE_CHECKING:
    from ...policies import Policy
    from ..server import Listen


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
    add_http(parser)
    parser.add_argument(
        "--attack-first", action="store_true",
        help="attack a sandbox of the profile from inside, and serve only if every attack is refused",
    )  # fmt: skip
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Serve until stdin closes."""
    from ...policies import PolicyError, PolicySource
    from . import fail
    from .policy import in_force

    workspace = Path(args.workspace)
    if not workspace.is_dir():
        return fail(f"workspace {workspace} is not a directory; create it or name another")
    try:
        source = PolicySource(name=args.profile, project=workspace)
        policy = in_force(source)
    except PolicyError as error:
        return fail(str(error))
    from ..config import ConfigError, load_servers

    try:
        servers = load_servers(args.config) if args.config is not None else []
    except ConfigError as error:
        return fail(str(error))
    try:
        http = http_of(args)
    except ValueError as error:
        return fail(str(error))
    where = args.http or "stdio"
    from ...isolation import IsolationError
    from ..server import ListenError, serve_tools

    if args.attack_first and (broken := _broken(policy)):
        return fail(f"not serving, for an attack on the sandbox succeeded:\n{broken}", 1)
    print(f"purple: serving {workspace.resolve()} under {policy.name} on {where}", file=sys.stderr)
    try:
        asyncio.run(
            serve_tools(
                policy,
                workspace,
                servers,
                http=http,
                source=source,
                config=args.config,
                frames_a_second=args.frame_rate,
            )
        )
    except PolicyError as error:
        return fail(str(error))
    except IsolationError as error:
        return fail(str(error), 125)
    except ListenError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"cannot write the audit log: {error}")
    return 0


def _broken(policy: Policy) -> str:
    """The layers that an attack from inside has passed, a line each; "" when all held."""
    from ...isolation import IsolationError
    from ...isolation.attack import attack

    try:
        outcomes = asyncio.run(attack(policy))
    except IsolationError as error:
        return str(error)
    return "\n".join(outcome.sentence() for outcome in outcomes if outcome.broken)


def add_http(parser: argparse.ArgumentParser) -> None:
    """Add the options of how clients are served."""
    parser.add_argument(
        "--frame-rate", type=frame_rate, default=MAX_FRAMES_A_SECOND, metavar="N",
        help="frames that a client may send a second, and as many at once "
        f"(default {MAX_FRAMES_A_SECOND}); what is over it is answered with an error",
    )  # fmt: skip
    parser.add_argument(
        "--http", metavar="HOST:PORT",
        help="serve streamable HTTP there instead; PURPLE_HTTP_TOKEN is the bearer token it asks for",
    )  # fmt: skip
    parser.add_argument(
        "--http-tokens", type=Path, metavar="FILE",
        help="a bearer token for each client: a YAML mapping of names to tokens, readable by you alone",
    )  # fmt: skip


def frame_rate(text: str) -> int:
    """A number of frames a second. Raises `ArgumentTypeError`."""
    least, most = 10, 1_000_000  # below it a handshake is a flood
    if not text.isdecimal() or not text.isascii() or not least <= int(text[:10]) <= most:
        raise argparse.ArgumentTypeError(
            f"{text[:50]!r} is no whole number of frames a second from {least} to {most}"
        )
    return int(text)


def http_of(args: argparse.Namespace) -> Listen | None:
    """Where the options ask to serve; None for stdio.

    Raises:
        ValueError: no HOST:PORT, an unusable file of tokens, or beyond loopback without a token.
    """
    from ..server import Listen

    if args.http is None:
        return None
    host, _, port = args.http.rpartition(":")
    if not port.isdecimal() or not host:
        raise ValueError(f"--http {args.http}: write HOST:PORT, as in 127.0.0.1:8000")
    if len(port) > 5 or int(port) > 65535:
        raise ValueError(f"--http {args.http}: ports end at 65535")
    token = os.environ.get("PURPLE_HTTP_TOKEN", "")
    tokens = {"http": token} if token else {}
    if args.http_tokens is not None:
        tokens |= _tokens(args.http_tokens)
    if not tokens and host not in ("127.0.0.1", "localhost", "[::1]"):
        raise ValueError("beyond loopback a token is needed: set PURPLE_HTTP_TOKEN")
    return Listen(
        host=host.strip("[]"), port=int(port), tokens=tokens, frames_a_second=args.frame_rate
    )


def _tokens(path: Path) -> dict[str, str]:
    import yaml

    from ..config import unreadable
    from ..wire.jsonrpc import is_object

    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path}: others may read it; chmod 600 {path}")
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(unreadable(path, error)) from None
    if not is_object(found) or not found:
        raise ValueError(f"{path}: a mapping of clients' names to tokens is needed")
    tokens: dict[str, str] = {}
    for name, token in found.items():
        if not isinstance(token, str) or len(token) < 16:
            raise ValueError(f"{path}: {name}: a token is a text of 16 characters or more")
        if token in tokens.values():
            raise ValueError(f"{path}: {name}: has the token of another")
        tokens[str(name)] = token
    return tokens
