"""One tool server as a client has it: requests go to it, decided, screened, and in its own era.

Theory of operation
    An `Upstream` serves one session, so nothing of one client's can reach another. Its `Connection`
    starts with the first request and again, with a growing pause, when it has died; its `Hearing`
    hands on what the server says by itself. Between equal eras params and results pass as they are; only ids and progress tokens are our own, and put back
    on the way. Between different eras `eras` translates: a legacy server's questions park a modern
    client's call; a modern server's `input_required` becomes questions to a legacy client.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from ..call import Version
from ..calls import Calls
from ..pins import Pins, Watch
from ..pins.watch import Withheld
from ..screens import Findings, definitions
from ..screens.progress import Pieces
from . import eras, jsonrpc, schemas, task_eras, tracing
from .acts import ACTING, act
from .client import LOG_LEVEL, SUBSCRIPTION, Client
from .connection import Connection
from .exchange import Exchange
from .hearing import Hearing
from .jsonrpc import Message, RpcError, object_of
from .links import Connector
from .session import Session
from .subscriptions import Subscriptions
from .task_bridge import TaskBridge
from .task_record import TaskRecord
from .tasks import EXTENSION

REQUEST_SECONDS = 600.0
_MOST_ROUNDS = 10
_LOOK_SECONDS = 1.0  # between looks at the pins, while some are withheld


class Upstream:
    """A server, for one session.

    Args:
        name: In rules and records.
        connector: Reaches it.
        session: Whom it serves.
        calls, version: Who decides, and by what; `version` may be replaced, for calls to come.
        pins: What it may not change without a person; None: anything.
        request_seconds: The longest that a request may take without progress.
    """

    def __init__(
        self, name: str, connector: Connector, session: Session, calls: Calls, version: Version, *,
        pins: Pins | None = None, request_seconds: float = REQUEST_SECONDS,
    ) -> None:  # fmt: skip
        self.name = name
        self._session, self._calls, self.version = session, calls, version
        self._watch = Watch(pins) if pins is not None else None
        self._seconds = request_seconds
        self._hearing = Hearing(name, connector, session, calls, lambda: self.version, self._watch)
        self._connection = self._hearing.connection = Connection(
            name, connector, self._watch, on_frame=self._hearing.frame,
            on_oversize=self._hearing.oversize, on_open=self._opened,
        )  # fmt: skip
        self.health = self._connection.health
        self._record = self._hearing.record = TaskRecord(calls, session.tasks)
        self._bridge = self._hearing.bridge = TaskBridge(self, session)
        self._subscriptions = Subscriptions(
            self._hearing, self.ask, self.ask_alone, lambda id: session.tasks.owner(id) == name
        )
        self._level = ""
        self._looks = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def era(self) -> Literal["legacy", "modern"]:
        """What the server speaks."""
        return self._connection.era

    def whose(self) -> str:
        """As `Watched.whose`."""
        return self._session.client.name if self._session.client is not None else ""

    async def describe(self, client: Client, exchange: Exchange | None) -> Message:
        """As `Backend.describe`."""
        await self._connection.open(client)
        said = (
            self._watch.introduced(self._connection.said)
            if self._watch is not None
            else self._connection.said
        )
        said = definitions.introduced(self.version.screen, self.name, said)
        if client.era == self.era:
            return said
        return eras.introduction(client, said, self.era == "modern")

    async def request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        """As `Backend.request`."""
        self.health.requests += 1
        try:
            await self._connection.open(exchange.client)
        except RpcError:
            self.health.failed += 1
            raise
        self._hearing.mine.append(exchange)
        try:
            return await self._request(exchange, method, params)
        except RpcError:
            self.health.failed += 1
            raise
        finally:
            self._hearing.mine.remove(exchange)

    async def _request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        if method.startswith("tasks/"):
            self._session.tasks.check(params, self.name, known=self._hearing.is_shared)
        forward = partial(self._forward, exchange, method)
        if method == "tools/call" or method in ACTING:
            problem = None
            if self._watch is not None:
                problem = await self._watch.problem(method, params, partial(self._page, exchange))
            return await act(
                self._calls, self.version, self._session, exchange.client, self.name, method,
                params, forward, exchange, problem,
            )  # fmt: skip
        try:
            result = await self._screened(method, self._sifted(method, params, forward(params)))
        except RpcError as error:
            self._record.failed(self.version, method, params, error)
            raise
        self._record.fetched(self.version, method, params, result)
        if (
            method == "tools/list"
            and exchange.client.era == "legacy" != self.era
            and self._makes_tasks
        ):
            return task_eras.tools_for_legacy(result)  # after the pins: a tool is one in both eras
        return result

    async def _screened(self, method: str, answer: Awaitable[Any]) -> Message:
        """The answer to what does not act, or its error, screened."""
        screen = self.version.screen
        try:
            try:
                result = await answer
                await screen.prepare(result)
            except RpcError as error:
                raise RpcError.of(definitions.passed(screen, method, error.error)) from None
            if method in definitions.LISTS and jsonrpc.is_object(result):
                return definitions.listed(screen, self.name, method, result)
            passed: Message = definitions.passed(screen, method, result)
            return passed
        except definitions.Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None

    def asking(self, method: str, params: Any) -> Any:
        """What a server asks of the client in its answer, screened. Raises `RpcError`."""
        try:
            return definitions.passed(self.version.screen, method, params)
        except definitions.Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None

    def _progress(self, exchange: Exchange) -> Callable[[Message], None]:
        """`exchange.progress`, its messages screened; what is split over two is found, too."""
        screen = self.version.screen
        pieces = Pieces(screen, by_line=False)

        def send(params: Message) -> None:
            message = params.get("message")
            rest = screen.value({k: v for k, v in params.items() if k != "message"}, Findings())
            if isinstance(message, str):
                rest["message"] = pieces.feed(message)
            exchange.progress(rest)

        return send

    async def _sifted(self, method: str, params: Message | None, answer: Awaitable[Any]) -> Any:
        """The answer, without what the pins withhold and what no client had better see."""
        result = await answer
        if method == "tools/list":
            result = schemas.safe(self.name, result)
        if self._watch is None or not jsonrpc.is_object(result):
            return result
        cursor: Any = (params or {}).get("cursor")
        try:
            listed = self._watch.listed(method, cursor, result)
        except Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None
        if self._watch.withholds and not self._looks:
            self._looks = True
            self._task(self._look_for_acceptance(self._watch))
        return listed

    async def _look_for_acceptance(self, watch: Watch) -> None:
        """Tell the client when a person has accepted what a list left out."""
        try:
            while watch.withholds:
                await asyncio.sleep(_LOOK_SECONDS)
                for method in watch.accepted():
                    self._hearing.announce(method)
        finally:
            self._looks = False

    async def _page(self, exchange: Exchange, method: str, cursor: str | None) -> Message | None:
        """A page of a list that the gateway itself wants to see."""
        params: Message = {}
        if exchange.client.era == "modern":
            params["_meta"] = {k: v for k, v in exchange.meta.items() if k != "progressToken"}
        if cursor is not None:
            params["cursor"] = cursor
        try:
            return object_of(await self._forward(exchange, method, params))
        except RpcError as error:
            if error.code == jsonrpc.METHOD_NOT_FOUND:
                return None
            raise

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """As `Backend.notified`."""
        if self._connection.link is not None and (
            client.era == self.era or not method.startswith("notif")
        ):
            self._connection.send(jsonrpc.notification(method, params))

    async def retire(self) -> None:
        """End the server once its requests have ended, but for subscriptions."""
        while any(e.method != "subscriptions/listen" for e in self._hearing.mine):
            await asyncio.sleep(0.1)
        await self.aclose()

    async def aclose(self) -> None:
        """End the server; see `Connection.aclose`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hearing.aclose()
        await self._bridge.aclose()
        await self._subscriptions.aclose()
        await self._connection.aclose()

    def _opened(self, client: Client) -> None:
        if self.era == "modern" and client.era == "legacy":
            self._subscriptions.listen_for(client)
        if self.health.starts > 1:
            offered = object_of(self._connection.said.get("capabilities"))
            for method in eras.LISTS:
                if object_of(offered.get(method.split("/")[1])).get("listChanged"):
                    self._hearing.deliver(method, None)

    def _task(self, work: Any) -> None:
        task: asyncio.Task[Any] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if exchange.client.era == self.era:
            return await self.ask(exchange, method, params)
        if method.startswith("tasks/"):
            result = await self._bridge.request(exchange, method, params or {})
            if self.era == "modern":
                return result
            info = object_of(self._connection.said.get("serverInfo"))
            return eras.modern_result(exchange.client, method, info, result)
        if self.era == "legacy":
            return await self._to_legacy(exchange, method, params)
        return await self._to_modern(exchange, method, params)

    async def ask_alone(self, method: str, params: Message) -> Any:
        """As `task_bridge.Server.ask_alone`."""
        return await self._connection.asks.ask(
            self._connection.send, method, params, seconds=math.inf
        )

    async def ask(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        """As `task_bridge.Server.ask`."""
        listening: list[int] = []

        ids: list[int] = []

        def on_id(id: int) -> None:
            ids.append(id)
            self._hearing.by_id[id] = exchange
            if method == "subscriptions/listen":
                listening.append(id)
                self._hearing.listeners[id] = (
                    exchange,
                    object_of((params or {}).get("notifications")),
                )

        try:
            with tracing.asking(method, params) as traced:
                result = await self._connection.asks.ask(
                    self._connection.send, method, traced,
                    seconds=self._seconds if method != "subscriptions/listen" else math.inf,
                    progress=self._progress(exchange) if exchange.token is not None else None,
                    reason=lambda: exchange.reason, on_id=on_id,
                )  # fmt: skip
        finally:
            for id in ids:
                self._hearing.by_id.pop(id, None)
            for id in listening:
                self._hearing.listeners.pop(id, None)
        if self._session.tasks.made(self.name, result) is not None and exchange.token is not None:
            self._hearing.tokens.keep(ids[0], exchange.token)
        if method == "tasks/list":
            return self._session.tasks.listed(self.name, result, known=self._hearing.is_shared)
        if listening and SUBSCRIPTION in object_of(object_of(result).get("_meta")):
            return {**result, "_meta": {**result["_meta"], SUBSCRIPTION: exchange.id}}
        return result

    async def _to_legacy(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if method in eras.GONE:
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)
        if "requestState" in (params or {}):  # none of this session's, and the server makes none
            raise RpcError(
                jsonrpc.INVALID_PARAMS, "requestState is not valid here: of another session"
            )
        if method == "subscriptions/listen":
            return await self._subscriptions.listen(exchange, params or {})
        level = exchange.meta.get(LOG_LEVEL)
        logs = "logging" in object_of(self._connection.said.get("capabilities"))
        if logs and isinstance(level, str) and level != self._level:
            self._level = level
            await self.ask(exchange, "logging/setLevel", {"level": level})
        for _ in range(_MOST_ROUNDS):
            try:
                bare = eras.bare(params)
                if method == "tools/call":
                    said = object_of(self._connection.said.get("capabilities"))
                    result = await self._bridge.call_legacy(
                        exchange, bare or {}, makes_tasks=task_eras.makes_tasks(said)
                    )
                else:
                    result = await self.ask(exchange, method, bare)
            except RpcError as error:
                questions = eras.url_questions(error)
                if not questions:
                    raise eras.modern_error(error) from None
                for question in questions:
                    passed = self.asking("elicitation/create", question)
                    answer = object_of(await exchange.ask("elicitation/create", passed))
                    if answer.get("action") != "accept":
                        text = "The client declined what the server asked for"
                        raise RpcError(jsonrpc.REFUSED, text) from None
                continue
            info = object_of(self._connection.said.get("serverInfo"))
            return eras.modern_result(exchange.client, method, info, object_of(result))
        raise RpcError(jsonrpc.INTERNAL_ERROR, f"Server {self.name!r} asks without end")

    @property
    def _makes_tasks(self) -> bool:
        """Whether a modern server does."""
        said = object_of(self._connection.said.get("capabilities"))
        return EXTENSION in object_of(said.get("extensions"))

    async def _to_modern(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if method == "ping":
            return {}
        if method == "logging/setLevel":
            self._level = str((params or {}).get("level", ""))
            return {}
        if method in ("resources/subscribe", "resources/unsubscribe"):
            self._subscriptions.change(exchange.client, method, params)
            return {}
        more: Message = {}
        wanted = self._makes_tasks and method == "tools/call" and "task" in (params or {})
        if wanted:
            params = {k: v for k, v in (params or {}).items() if k != "task"}
        for _ in range(_MOST_ROUNDS):
            sent = eras.enveloped(exchange.client, params, self._level, takes_tasks=wanted)
            result = object_of(await self.ask(exchange, method, {**sent, **more}))
            if result.get("resultType") != "input_required":
                if method == "tools/call":
                    return self._bridge.called_modern(wanted, result)
                return eras.legacy_result(result)
            answers: Message = {}
            for key, question in object_of(result.get("inputRequests")).items():
                asked = object_of(question)
                kind = str(asked.get("method"))
                passed = self.asking(kind, asked.get("params"))
                answers[key] = await exchange.ask(kind, passed)
            more = {"inputResponses": answers} if answers else {}
            if "requestState" in result:
                more["requestState"] = result["requestState"]
            if not answers:
                await asyncio.sleep(0.1)
        raise RpcError(jsonrpc.INTERNAL_ERROR, f"Server {self.name!r} asks without end")
