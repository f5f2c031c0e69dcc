"""A way to one server: started, greeted in its era, and made anew when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from ..pins import Watch
from ..pins.watch import Withheld
from ..reasons import Reason
from ..screens import detectors
from . import eras, jsonrpc
from .asks import Asks
from .client import MODERN_VERSIONS, Client
from .health import Health
from .jsonrpc import Id, Message, RpcError, list_of, object_of
from .links import Connector, Ears, Link

HANDSHAKE_SECONDS = 60.0
PROBE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_MOST_QUEUED_BYTES = 256 << 20


class Connection:
    """The server of one session.

    Args:
        name: In errors.
        connector: Reaches it.
        watch: Says whether it may be started; None where nothing is pinned.
        on_frame, on_oversize: Told what comes.
        on_open: Told each time that it has been greeted, on behalf of which client.

    Attributes:
        era, said: What it speaks, and its answer to the opening request.
        asks: Requests to it that wait.
        link: None while it is not there.
    """

    def __init__(
        self, name: str, connector: Connector, watch: Watch | None, *,
        on_frame: Callable[[bytes, Id | None], None], on_oversize: Callable[[bytes], None],
        on_open: Callable[[Client], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.era: Literal["legacy", "modern"] = "legacy"
        self.said: Message = {}
        self.asks = Asks()
        self.link: Link | None = None
        self.health = Health()
        self._connector, self._watch = connector, watch
        self._on_frame, self._on_oversize, self._on_open = on_frame, on_oversize, on_open
        self._opening: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, client: Client) -> None:
        """Have the server running and greeted. Raises `RpcError`."""
        opening = self._opening
        if opening is not None and opening.done() and self.link is not None:
            opening.result()
            return
        if opening is None or (opening.done() and self.link is None):
            pause = self._not_before - asyncio.get_running_loop().time()
            if pause > 1.0:
                text = f"Server {self.name!r} has ended and starts again in {pause:.0f} s"
                raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"{text}{self._connector.last()}")
            opening = self._opening = asyncio.create_task(self._start(client))
        await asyncio.shield(opening)

    async def _start(self, client: Client) -> None:
        if self._watch is not None:
            try:
                await self._watch.started()
            except Withheld as problem:
                data = {"reason": str(Reason.PIN_MISMATCH), "rule": "pins.launch"}
                raise RpcError(jsonrpc.REFUSED, str(problem), data) from None
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        starts = self.health.starts
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(starts, 10))
        self._not_before = loop.time() + (pause if starts else 0)
        self.health.starts += 1
        self.health.enter("starting")
        ears = Ears(self._on_frame, self._on_oversize, self._ended)
        link = self.link = self._connector.connect(ears)
        try:
            await self._greet(client)
            detectors.load_soon()  # what it will say is looked through, and not all of it may wait
        except BaseException as error:
            if self.link is link:
                self.link = None
            self.health.enter("waiting", str(error) or "it did not start in time")
            await link.aclose(at_once=True)
            raise
        self.health.enter("running")
        self._on_open(client)

    def _ended(self, link: Link, how: str) -> None:
        if self.link is not link:
            return
        self.link = None
        text = f"Server {self.name!r} has ended: {how}{self._connector.last()}"
        self.health.enter("waiting", text)
        self.asks.close(text, jsonrpc.SERVER_UNAVAILABLE)
        closing = asyncio.create_task(link.aclose(at_once=True))
        self._tasks.add(closing)
        closing.add_done_callback(self._tasks.discard)

    def _agreed(self, version: str) -> None:
        if self.link is not None:
            self.link.greeted(self.era, version)

    async def _greet(self, client: Client) -> None:
        modern = client.era == "modern" and not self._connector.is_legacy
        discover = eras.enveloped(client, None)
        for attempt in range(2):
            try:
                if modern:
                    seconds = PROBE_SECONDS if attempt == 0 else HANDSHAKE_SECONDS
                    said = await self.asks.ask(
                        self.send, "server/discover", discover, seconds=seconds
                    )
                    if set(MODERN_VERSIONS) & set(
                        list_of(object_of(said).get("supportedVersions"))
                    ):
                        self.era, self.said = "modern", said
                        self._agreed(MODERN_VERSIONS[-1])
                        return
                else:
                    hello = eras.handshake(client)
                    said = await self.asks.ask(
                        self.send, "initialize", hello, seconds=HANDSHAKE_SECONDS
                    )
                    self.era, self.said = "legacy", object_of(said)
                    if client.era == "modern" or self.health.starts > 1:
                        self.send(jsonrpc.notification("notifications/initialized", None))
                    self._agreed(str(self.said.get("protocolVersion", "")))
                    return
            except RpcError as error:
                # A server of the other era only; or one whose era a slow probe has settled.
                if attempt or self.link is None or error.code == jsonrpc.SERVER_UNAVAILABLE:
                    raise
                if not modern and error.code not in (-32022, -32601):
                    raise
            modern = not modern and not self._connector.is_legacy
        raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"Server {self.name!r} speaks no known revision")

    def send(self, message: Message) -> None:
        """Put a message on the wire. Raises `RpcError`: the server is not there, or does not read."""
        link = self.link
        if link is None:
            raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"Server {self.name!r} is not running")
        if link.buffered_bytes > _MOST_QUEUED_BYTES:
            raise RpcError(jsonrpc.OVERLOADED, f"Server {self.name!r} does not read")
        link.send(message)

    async def aclose(self) -> None:
        """End the server: its stdin is closed, and what is left after two seconds is killed."""
        if self._opening is not None:
            self._opening.cancel()
        link, self.link = self.link, None
        if link is not None:
            await link.aclose()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connector.close()
