"""One request of a client, until its answer has left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from . import jsonrpc
from .client import Client
from .jsonrpc import Id, Message, RpcError, object_of

if TYPE_CHECKING:
    from .session import Session

PARKED_SECONDS = 600.0


class Sink(Protocol):
    """Where messages to the client go."""

    @property
    def buffered_bytes(self) -> int:
        """What the client has not taken yet."""
        ...

    def send(self, message: Message) -> None:
        """Queue one. Raises `ValueError` when it cannot be written as JSON."""
        ...


class Exchange:
    """One request of a client, until its answer has left.

    Attributes:
        id: The client's; it changes when a parked exchange is retried.
        method, params: As they came.
        client: As of this request; modern clients state their capabilities with each.
        reason: The params of the client's `notifications/cancelled`; None while it has not come.
    """

    def __init__(self, session: Session, id: Id, message: Message, client: Client, sink: Sink):
        self.session = session
        self.id = id
        self.method: str = message["method"]
        self.params: Message | None = message.get("params")
        self.client = client
        self.sink = sink
        self.reason: Message | None = None
        self.task: asyncio.Task[None] | None = None
        self.token: Any = self.meta.get("progressToken")
        self._inputs: dict[str, tuple[Message, asyncio.Future[Any]]] = {}
        self._count = 0
        self.quiet: set[str] = set()  # notifications that are not sent on
        self.bound = True  # whether a request of the client's waits for this exchange
        self.final: Message | None = None
        self.key: object = id  # in the session; ids of stateless requests may be equal

    @property
    def meta(self) -> Message:
        """`params._meta`, or {}."""
        return object_of((self.params or {}).get("_meta"))

    def emit(self, message: Message) -> None:
        """Send a notification that belongs to this request."""
        if self.bound and message.get("method") not in self.quiet:
            self.session.send(message, self.sink)

    def progress(self, params: Message) -> None:
        """Send `notifications/progress` with the client's own token; nothing where it gave none."""
        if self.token is not None:
            params = {**params, "progressToken": self.token}
            self.emit(jsonrpc.notification("notifications/progress", params))

    async def ask(self, method: str, params: Message | None, meta: Message | None = None) -> Any:
        """Have the client answer `method`; returns its result.

        Raises:
            RpcError: its error, or it cannot be asked, or did not answer in time.
        """
        if self.client.era == "legacy":
            return await self.session.ask(method, params, self)
        check_can_answer(self.client, method)
        self._count += 1
        key, question = input_request(method, params, self._count)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inputs[key] = question, future
        if self.bound:
            asyncio.get_running_loop().call_soon(self.park)
        try:
            return await asyncio.wait_for(future, PARKED_SECONDS)
        except TimeoutError:
            raise RpcError(jsonrpc.TIMED_OUT, f"Nobody answered {method} in time") from None
        finally:
            self._inputs.pop(key, None)

    def park(self) -> None:
        """Answer `input_required` with all that is asked now."""
        waiting = {k: q for k, (q, future) in self._inputs.items() if not future.done()}
        if self.bound and waiting:
            self.session.park(self, waiting)

    def ended(self) -> None:
        """Its answer is there: it can carry no question any more."""
        self.bound = False
        for _, future in self._inputs.values():
            if not future.done():
                text = "The request that could have carried this has been answered"
                future.set_exception(RpcError(jsonrpc.SERVER_UNAVAILABLE, text))

    def answered(self, responses: Message) -> None:
        """Take the client's answers; questions without one are asked again."""
        for key, (_, future) in self._inputs.items():
            if key in responses and not future.done():
                future.set_result(responses[key])
        asyncio.get_running_loop().call_soon(self.park)


def input_request(method: str, params: Message | None, count: int) -> tuple[str, Message]:
    """A member of `inputRequests`: its key, of which `count` is different each time, and the question."""
    question: Message = {"method": method}
    if params is not None:
        question["params"] = params
    return f"{method.partition('/')[0]}-{count}", question


def check_can_answer(client: Client, method: str) -> None:
    """Raise `RpcError` where a modern client has not said that it answers such requests."""
    need = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling",
            "roots/list": "roots"}.get(method)  # fmt: skip
    if need is None or need not in client.capabilities:
        text = f"The client cannot be asked for {method}"
        data: Message | None = {"requiredCapabilities": {need: {}}} if need else None
        raise RpcError(jsonrpc.METHOD_NOT_FOUND, text, data)
