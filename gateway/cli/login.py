"""`purple login`: sign in at a server that is reached by a URL, once; its token is kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_ANSWER_SECONDS = 600.0
_PAGE = b"Signed in. You can close this window and go back to the terminal."


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "login", help="sign in at a server that is reached by a URL",
        description="Opens the authorization server's page; what it gives is kept for `purple serve`.",
    )  # fmt: skip
    parser.add_argument("server", help="its name in the configuration")
    parser.add_argument("--config", type=Path, required=True, help="the file that names it")
    parser.add_argument("--forget", action="store_true", help="delete what is kept instead")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Sign in, or forget."""
    import asyncio

    from ...isolation import IsolationError
    from ...policies import PolicyError
    from ..config import ConfigError, load_servers, with_secrets
    from ..tokens import TokenFile
    from . import fail

    try:
        servers = {server.name: server for server in load_servers(args.config)}
        server = servers.get(args.server)
        if server is None:
            return fail(f"{args.config} names no server {args.server!r}")
        if server.auth is None:
            return fail(f"{args.server} has no `auth` in {args.config}")
        if server.auth.client_secret:
            return fail(f"{args.server} has a client_secret: nobody needs to sign in")
        if args.forget:
            TokenFile(server.url).delete()
            return 0
        asyncio.run(_sign_in(with_secrets(server)))
    except (ConfigError, PolicyError) as error:
        return fail(str(error))
    except (IsolationError, OSError, TimeoutError) as error:
        return fail(f"not signed in: {error or 'nobody came back from the browser in time'}", 1)
    print(f"signed in; {TokenFile(server.url).path} holds the token")
    return 0


async def _sign_in(server: Any) -> None:
    import asyncio
    import socket
    import webbrowser

    import h11
    from mcp.client.auth import AuthorizationCodeResult

    from ...isolation.egress.dial import SystemResolver
    from ...policies import PolicySource
    from ..elsewhere import leave_of, policy_for
    from ..tokens import TokenFile
    from ..wire.oauth import Person

    listener = socket.create_server(("127.0.0.1", 0))
    redirect = f"http://127.0.0.1:{listener.getsockname()[1]}/callback"
    came: asyncio.Future[AuthorizationCodeResult] = asyncio.get_running_loop().create_future()

    async def shown(url: str) -> None:
        print(f"Open this page to sign in:\n{url}", flush=True)
        await asyncio.to_thread(webbrowser.open, url)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 16))
        status, body = 404, b"Nothing is here."
        if isinstance(event, h11.Request):
            parts = urlsplit(event.target.decode("ascii", "replace"))
            given = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if parts.path == "/callback" and not came.done():
                status, body = 200, _PAGE
                if "error" in given:
                    body = b"Not signed in."
                    came.set_exception(OSError(f"the authorization server says {given['error']}"))
                else:
                    came.set_result(
                        AuthorizationCodeResult(
                            code=given.get("code", ""),
                            state=given.get("state"),
                            iss=given.get("iss"),
                        )
                    )
        head = h11.Response(
            status_code=status,
            headers=[("Content-Length", str(len(body))), ("Connection", "close")],
        )
        for out in (head, h11.Data(body), h11.EndOfMessage()):
            writer.write(connection.send(out) or b"")
        await writer.drain()
        writer.close()

    async def came_back() -> AuthorizationCodeResult:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await came

    TokenFile(server.url).delete()  # registered for another port
    project = Path.cwd()
    own = (
        PolicySource(name=server.profile, project=project).load()
        if server.profile
        else policy_for(server, project)
    )
    resolver = SystemResolver()
    http = await asyncio.start_server(answered, sock=listener)
    try:
        leave = leave_of(server, own, resolver, Person(redirect, shown, came_back))
        assert leave is not None
        # As if the server had asked for a token without saying where: its metadata says where.
        await leave.token((401, {}))
        leave.close()
    finally:
        http.close()
        resolver.close()
