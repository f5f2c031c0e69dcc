"""The MCP server: what `purple serve` and `purple wrap` speak to clients, on stdin and stdout."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..isolation import IsolationError
from ..policies import Policy, PolicyError, PolicySource
from .approvals import Approvals, Board
from .approvals.callback import Callbacks
from .approvals.channel import Channel, ChannelError
from .audit import spans
from .behind import Servers, held, pins_of
from .config import ServerSpec, load_servers
from .gateway import Gateway
from .pins import PinStore
from .reload import refuse_changeable, reloading, steady
from .runners import adapted
from .wire import jsonrpc
from .wire.builtin import BuiltIns
from .wire.health import Roster
from .wire.jsonrpc import Message
from .wire.process import Launcher, sandboxed
from .wire.rate import MAX_FRAMES_A_SECOND, Rate
from .wire.router import Single
from .wire.session import Handler, Session
from .wire.stdio import Pipe
from .wire.upstream import Upstream

_FINISH_SECONDS = 1.0  # for what is in flight when a client that still listens closes its end


class ListenError(OSError):
    """An address that cannot be listened on; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where and to whom streamable HTTP is served.

    Attributes:
        host, port: Port 0 takes a free one.
        tokens: The bearer token of each client, by the client's name; empty asks for none.
        stream_seconds: After that an event stream ends, and a client that can comes back to it.
        frames_a_second: That each client may send.
    """

    host: str
    port: int
    tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    stream_seconds: float = 300.0
    frames_a_second: float = MAX_FRAMES_A_SECOND


class _PipeSink:
    """A session's way out on a pipe."""

    def __init__(self) -> None:
        self.pipe: Pipe

    @property
    def buffered_bytes(self) -> int:
        return self.pipe.buffered_bytes

    def send(self, message: Message) -> None:
        self.pipe.send(jsonrpc.encode(message))


async def serve_pipe(
    handler: Callable[[Session], Handler], reader: int, writer: int,
    stop: asyncio.Event | None = None, frames_a_second: float = MAX_FRAMES_A_SECOND,
) -> None:  # fmt: skip
    """Serve one client on a pair of descriptors until it closes its end, or `stop` is set."""
    stop = stop or asyncio.Event()
    sink = _PipeSink()
    session = Session(handler, sink, rate=Rate(frames_a_second))

    def oversize(head: bytes) -> None:
        text = f"Invalid request: over {jsonrpc.MAX_FRAME_BYTES >> 20} MiB"
        problem = {"code": jsonrpc.INVALID_REQUEST, "message": text}
        session.send(jsonrpc.error(jsonrpc.salvage_id(head), problem))

    pipe = sink.pipe = Pipe(
        reader, writer, on_frame=lambda frame: session.receive_frame(frame, sink),
        on_closed=stop.set, on_oversize=oversize,
    )  # fmt: skip
    pipe.on_drained = session.drained
    pipe.start()
    try:
        await stop.wait()
        if pipe.has_reader():
            await session.finish(_FINISH_SECONDS)
    finally:
        await session.aclose()
        await pipe.aclose()


async def serve_stdio(
    handler: Callable[[Session], Handler], frames_a_second: float = MAX_FRAMES_A_SECOND
) -> None:
    """Serve on stdin and stdout until the client closes them or SIGTERM or SIGINT comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # What else in this process prints must not end up between frames.
    writer = os.dup(1)
    os.dup2(2, 1)
    try:
        await serve_pipe(handler, os.dup(0), writer, stop, frames_a_second)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve_http(
    handler: Callable[[Session], Handler], listen: Listen,
    started: Callable[[int], None] = lambda port: None, approvals: Approvals | None = None,
) -> None:  # fmt: skip
    """Serve on `http://host:port/mcp` until SIGTERM or SIGINT, or the caller is cancelled.

    Args:
        handler: Serves a session.
        listen: Where, and to whom.
        started: Told the port once connections are taken.
        approvals: Takes the answers of webhooks, at `/approvals/`.

    Raises:
        ListenError: the address is in use, not this host's, or not to be had.
    """
    import socket

    import uvicorn

    from .http import HttpServer

    host = listen.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, listen.port), family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ListenError(f"cannot listen on {host}, port {listen.port}: {why}") from None
    # tcp(7): accepted ones have it, too. asyncio sets it only where a socket names its protocol, and
    # without it a body waits for the head's acknowledgement, some 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = listener.getsockname()[1]
    names = {host if ":" not in host else f"[{host}]", "127.0.0.1", "localhost", "[::1]"}
    hosts = {f"{name}:{number}" for name in names}
    application = HttpServer(
        handler, hosts, listen.tokens, stream_seconds=listen.stream_seconds,
        frames_a_second=listen.frames_a_second,
    )  # fmt: skip
    config = uvicorn.Config(
        Callbacks(application, approvals) if approvals is not None else application,
        log_level="error", lifespan="off", ws="none", access_log=False,
        timeout_graceful_shutdown=2, server_header=False,
    )  # fmt: skip
    started(number)
    try:
        await uvicorn.Server(config).serve([listener])
    finally:
        listener.close()
        await application.aclose()


async def serve_tools(
    policy: Policy, workspace: Path, servers: Sequence[ServerSpec] = (), *,
    http: Listen | None = None, source: PolicySource | None = None, config: Path | None = None,
    frames_a_second: float = MAX_FRAMES_A_SECOND,
) -> None:  # fmt: skip
    """Serve the built-in tools, and those of `servers` behind them.

    Args:
        policy, workspace: Of the built-in tools.
        servers: What else is served.
        http: Host, port and bearer token; None serves on stdin and stdout.
        source: Where `policy` comes from: what a person allows for good is written there, and what
            changes there is put in force while it runs.
        config: Where `servers` come from, likewise.
        frames_a_second: That the client on stdin may send; `http` has its own.

    Raises:
        PolicyError: a server's profile cannot be used.
        ConfigError: a server's URL cannot be.
        SetupError: the sandbox cannot be built, or less than the policy requires is enforced.
        OSError: the audit log cannot be written.
    """
    spans.configure()
    async with AsyncExitStack() as stack:
        whose = f"serve, {policy.name}, {workspace.resolve()}"
        roster = Roster(whose)
        approvals = await _approvals(stack, roster, whose, source)
        gateway = await stack.enter_async_context(Gateway(policy, workspace, approver=approvals))
        roster.processes = gateway.background
        behind = Servers(gateway, workspace, roster)
        stack.push_async_callback(behind.aclose)
        await behind.put(servers, policy)

        def handler(session: Session) -> Handler:
            return behind.behind(session) if servers or config else Single(BuiltIns(gateway))

        async def reload() -> str:
            assert source is not None
            views = [gateway.version.engine.view, *behind.views()]
            new, before = steady(source, views).load(), gateway.policy.digest
            specs = servers
            if config is not None:
                refuse_changeable(config, views)
                specs = load_servers(config)
            changed = await behind.put(specs, new, partial(steady, views=views))
            try:
                await gateway.replace(new)
            except IsolationError:
                await behind.put(specs, gateway.policy, partial(steady, views=views))
                raise
            approvals.policies_in_force({new.digest, *behind.digests()})
            if new.digest == before and not changed:
                return ""
            return f"reloaded: {new.name} is at version {new.digest[:12]}"

        if source is not None:

            def stamp() -> object:
                stamps = [one.stamp() for one in (source, *behind.sources())]
                return stamps, config and _stat(config)

            await stack.enter_async_context(reloading(gateway, roster, stamp, reload))
        if http is None:
            await serve_stdio(handler, frames_a_second)
        else:
            await serve_http(handler, http, started=partial(_say, http), approvals=approvals)


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


async def _approvals(
    stack: AsyncExitStack, roster: Roster, gateway: str, source: PolicySource | None
) -> Approvals:
    """Who asks a person; without the channel of `purple approvals` where that cannot be opened."""
    board = Board(gateway)
    try:
        await stack.enter_async_context(Channel(board, status=roster.status))
    except (ChannelError, OSError) as error:
        print(
            f"purple: `purple approvals` and `purple ps` cannot reach this gateway: {error}",
            file=sys.stderr,
        )
        return Approvals(source=source)
    return Approvals([board], source=source)


def _say(listen: Listen, port: int) -> None:
    if not listen.tokens:
        print(
            "purple: no token is asked for: every user of this host can use what is served; "
            "set PURPLE_HTTP_TOKEN",
            file=sys.stderr,
        )
    print(f"purple: listening on port {port}, path /mcp", file=sys.stderr, flush=True)


async def serve_remote(
    server: ServerSpec, workspace: Path, *, http: Listen | None = None,
    frames_a_second: float = MAX_FRAMES_A_SECOND,
) -> None:  # fmt: skip
    """Serve one tool server that is reached by a URL, with its own names and identity.

    Args:
        server: Where it is, and its profile; without one its own host is all that is reached.
        workspace: Where the profile is looked for.
        http: Serves streamable HTTP there; None serves on stdio.
        frames_a_second: As in `serve_tools`.

    Raises:
        PolicyError, ConfigError, SetupError, OSError: as `serve_tools`.
    """
    spans.configure()
    source = PolicySource(name=server.profile or "mcp-server", project=workspace)
    policy = source.load()
    async with AsyncExitStack() as stack:
        whose = f"wrap, {server.name}, {policy.name}"
        roster = Roster(whose)
        kept = source if server.profile else None
        approvals = await _approvals(stack, roster, whose, kept)
        gateway = await stack.enter_async_context(Gateway(policy, workspace, approver=approvals))
        behind = Servers(gateway, workspace, roster)
        stack.push_async_callback(behind.aclose)
        await behind.put([replace(server, origin=server.url)], policy)  # its pins are the URL's
        if http is None:
            await serve_stdio(behind.alone, frames_a_second)
        else:
            await serve_http(behind.alone, http, started=partial(_say, http), approvals=approvals)


async def serve_wrapped(
    policy: Policy, workspace: Path, command: Sequence[str],
    env: Mapping[str, str] | None = None, *, http: Listen | None = None,
    source: PolicySource | None = None, name: str = "", secrets: Mapping[str, str] | None = None,
    frames_a_second: float = MAX_FRAMES_A_SECOND,
) -> None:  # fmt: skip
    """Serve one tool server, in a sandbox under `policy`, with its own names and identity.

    Args:
        policy: Of its sandbox and of its calls.
        workspace: The directory that it sees.
        command: Starts it.
        env: Added to the policy's environment.
        http: Serves streamable HTTP there; None serves on stdio.
        source, frames_a_second: As in `serve_tools`.
        secrets: Of `env` those that must not come back, whatever their names.
        name: Of the server in rules, records and pins; "" is its command's, and its pins are then
            kept under the command and the workspace: another command is another server.

    Raises:
        SetupError: the sandbox cannot be built, or less than the policy requires is enforced.
        CommandNotFound: there is no such program inside.
        OSError: the audit log cannot be written.
    """
    from ..isolation.command import Commands
    from ..isolation.plan import compile_plan

    spans.configure()
    commands = Commands(compile_plan(policy, workspace))
    commands.find(commands.command(command, "", None))  # a good error before any client
    key = f"wrap#{name}" if name else f"{workspace.resolve()}$ {shlex.join(command)}"
    name = name or Path(command[0]).name
    async with AsyncExitStack() as stack:
        whose = f"wrap, {name}, {policy.name}, {workspace.resolve()}"
        roster = Roster(whose)
        approvals = await _approvals(stack, roster, whose, source)
        gateway = await stack.enter_async_context(Gateway(policy, workspace, approver=approvals))
        version = replace(gateway.version, secrets=env or {}, read=secrets or {})
        argv, added = adapted(command, env)
        life = gateway.life_of(name, version, argv)
        launch = sandboxed(version.engine, argv, added, life)
        store = PinStore()
        live: weakref.WeakSet[Upstream] = weakref.WeakSet()

        def single(session: Session) -> Single:
            pins = pins_of(key, name, store, version, command, workspace)
            launcher = Launcher(name, launch)
            upstream = Upstream(name, launcher, session, gateway.calls, version, pins=pins)
            live.add(upstream)
            roster.add(upstream)
            return Single(upstream)

        async def reload() -> str:
            nonlocal version
            assert source is not None
            new = steady(source, [version.engine.view]).load()
            if new.digest == version.policy.digest:
                return ""
            if held(new) != held(version.policy):
                raise PolicyError(
                    "its sandbox would be another, and the server runs in the old one; restart it"
                )
            version = replace(version, policy=new)
            for upstream in live:
                upstream.version = version
            approvals.policies_in_force({new.digest})
            return f"reloaded: {new.name} is at version {new.digest[:12]}"

        if source is not None:
            await stack.enter_async_context(reloading(gateway, roster, source.stamp, reload))
        if http is None:
            await serve_stdio(single, frames_a_second)
        else:
            await serve_http(single, http, started=partial(_say, http), approvals=approvals)
