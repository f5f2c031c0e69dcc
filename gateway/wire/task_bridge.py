"""Tasks of one era for a client of the other.

Theory of operation
    Of 2025-11-25 a client asks for a task, `tasks/get` says how it fares, and `tasks/result` waits for
    what it gives; what the server asks meanwhile comes as a request that names the task. In the
    extension to 2026-07-28 (SEP-2663) the server decides, and `tasks/get` brings all: the state, the
    questions, in the end the result. Nobody is asked for a task who would not make one, and nobody
    gets one who has not said that it may be.

    Modern client, legacy server: a tool that refuses to run but as a task is called as one, where the
    client takes tasks. The result is fetched when the task has ended, or waits for an answer: over
    HTTP the questions come on the stream of that request. They are kept until `tasks/update`.

    Legacy client, modern server: the extension is stated for calls that ask for a task. A server that
    answers at once all the same has made none, so the gateway keeps the result as that of a task of
    its own. `tasks/result` asks how the task fares again and again, and asks the client on the way.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import uuid
from collections import OrderedDict
from typing import Any, Protocol

from . import eras, jsonrpc
from .client import Client
from .exchange import PARKED_SECONDS, Exchange, check_can_answer, input_request
from .jsonrpc import Message, RpcError, is_object, object_of
from .session import Session
from .task_eras import legacy_task, modern_task
from .tasks import EXTENSION, NOT_ITS_OWN, RELATED

_METHODS = {
    "legacy": frozenset({"tasks/get", "tasks/result", "tasks/cancel"}),
    "modern": frozenset({"tasks/get", "tasks/update", "tasks/cancel"}),
}
_ENDED = frozenset({"completed", "failed", "cancelled"})
_STATES = _ENDED | {"working", "input_required"}
_LEAST_POLL_SECONDS, _POLL_SECONDS, _MOST_POLL_SECONDS = 0.05, 1.0, 10.0
_MOST_TASKS, _MOST_KEPT, _MOST_TOOLS, _MOST_QUESTIONS = 1000, 64, 1000, 64


class Server(Protocol):
    """What is needed of the server that makes the tasks."""

    name: str

    async def ask(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        """The result of a request on behalf of one of the client's. Raises `RpcError`."""
        ...

    async def ask_alone(self, method: str, params: Message) -> Any:
        """The result of a request of the gateway's own, however long it takes. Raises `RpcError`."""
        ...

    def asking(self, method: str, params: Any) -> Any:
        """What the server asks of the client, screened. Raises `RpcError`."""
        ...


class TaskBridge:
    """Those of one server for one session."""

    def __init__(self, server: Server, session: Session) -> None:
        self._server, self._session = server, session
        # Whom the task was made for; what it asks and has not been answered.
        self._clients: OrderedDict[str, Client] = OrderedDict()
        self._questions: dict[str, dict[str, tuple[Message, asyncio.Future[Any]]]] = {}
        self._count = 0
        self._fetching: dict[str, asyncio.Task[Any]] = {}
        self._kept: OrderedDict[str, tuple[Message, Message]] = OrderedDict()
        self._only_as_tasks: OrderedDict[str, None] = OrderedDict()

    async def aclose(self) -> None:
        """Fetch nothing any more."""
        fetching = list(self._fetching.values())
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)

    async def request(self, exchange: Exchange, method: str, params: Message) -> Message:
        """The result of a `tasks/` request of a client of the other era. Raises `RpcError`."""
        if method not in _METHODS[exchange.client.era]:
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)
        id = params.get("taskId")
        if not isinstance(id, str):
            raise RpcError(jsonrpc.INVALID_PARAMS, "taskId must be a string")
        if exchange.client.era == "modern":
            return await self._of_legacy(exchange, method, id, params)
        if id in self._kept:
            return self._own(method, id)
        return await self._of_modern(exchange, method, id)

    # A legacy server's tasks.

    async def call_legacy(self, exchange: Exchange, params: Message, *, makes_tasks: bool) -> Any:
        """The result of a `tools/call`: a modern client's, made bare, at a legacy server.

        Args:
            exchange, params: The call.
            makes_tasks: Whether the server says that a call may be one.
        """
        tool = str(params.get("name"))
        takes = EXTENSION in object_of(exchange.client.capabilities.get("extensions"))
        if not (makes_tasks and takes):
            return await self._server.ask(exchange, "tools/call", params)
        if tool not in self._only_as_tasks:
            try:
                return await self._server.ask(exchange, "tools/call", params)
            except RpcError as error:
                # 2025-11-25, "Tool-level negotiation": nothing has run, for it must be a task.
                if error.code != jsonrpc.METHOD_NOT_FOUND:
                    raise
        result = await self._server.ask(exchange, "tools/call", {**params, "task": {}})
        _keep(self._only_as_tasks, tool, None, _MOST_TOOLS)
        task = object_of(object_of(result).get("task"))
        if not isinstance(task.get("taskId"), str):
            return result
        _keep(self._clients, task["taskId"], exchange.client, _MOST_TASKS)
        return {**_meta_of(result), **modern_task(task), "resultType": "task"}

    async def _of_legacy(
        self, exchange: Exchange, method: str, id: str, params: Message
    ) -> Message:
        if method == "tasks/update":
            responses = object_of(params.get("inputResponses"))
            for key, (_, future) in self._questions.get(id, {}).items():
                if key in responses and not future.done():
                    future.set_result(responses[key])
            return {}
        try:
            result = await self._server.ask(exchange, method, {"taskId": id})
        except RpcError as error:
            if method == "tasks/get" or error.code != jsonrpc.INVALID_PARAMS:
                raise
            # It may have ended just now: a wish to cancel is then still heard.
            await self._server.ask(exchange, "tasks/get", {"taskId": id})
            return {}
        return {} if method == "tasks/cancel" else await self.detailed(object_of(result))

    async def detailed(self, task: Message) -> Message:
        """A legacy server's task as the modern era has it: with its questions, result or error."""
        id, status, made = task.get("taskId"), task.get("status"), modern_task(task)
        if not isinstance(id, str):
            return made
        if status in ("completed", "failed"):
            # Failed is there a result with `isError`, too; here an error of the protocol alone.
            try:
                made |= {"status": "completed", "result": await asyncio.shield(self._fetch(id))}
            except RpcError as error:
                if error.code in NOT_ITS_OWN:
                    raise
                made |= {"status": "failed", "error": error.error}
        elif status == "input_required":
            self._fetch(id)
            asked = {key: q for key, (q, f) in self._questions.get(id, {}).items() if not f.done()}
            made |= {"inputRequests": asked} if asked else {"status": "working"}
        return made

    def _fetch(self, id: str) -> asyncio.Task[Any]:
        """The request for a task's result, sent if it is not under way."""
        task = self._fetching.get(id)
        if task is None:
            if len(self._fetching) >= _MOST_TASKS:
                raise RpcError(jsonrpc.OVERLOADED, f"Over {_MOST_TASKS} tasks wait")
            work = self._server.ask_alone("tasks/result", {"taskId": id})
            task = self._fetching[id] = asyncio.ensure_future(work)

            def ended(task: asyncio.Task[Any]) -> None:
                self._fetching.pop(id, None)
                if not task.cancelled():
                    task.exception()  # is whose who waits, if anybody does

            task.add_done_callback(ended)
        return task

    def is_about(self, params: Message | None) -> bool:
        """Whether a legacy server's request belongs to a task of a modern client's."""
        return _related(params) in self._clients

    async def question(self, method: str, params: Message | None) -> Any:
        """Have a modern client answer what its task asks; returns its result. Raises `RpcError`."""
        id = _related(params)
        check_can_answer(self._clients[id], method)
        questions = self._questions.setdefault(id, {})
        if len(questions) >= _MOST_QUESTIONS:
            raise RpcError(jsonrpc.OVERLOADED, f"Over {_MOST_QUESTIONS} questions of one task wait")
        self._count += 1
        key, question = input_request(method, params, self._count)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        questions[key] = question, future
        try:
            return await asyncio.wait_for(future, PARKED_SECONDS)
        except TimeoutError:
            raise RpcError(jsonrpc.TIMED_OUT, f"Nobody answered {method} in time") from None
        finally:
            del questions[key]
            if not questions:
                self._questions.pop(id, None)

    # A modern server's tasks.

    def called_modern(self, wanted: bool, result: Message) -> Message:
        """A modern server's last answer to a legacy client's `tools/call`.

        Args:
            wanted: Whether the client has asked for a task.
            result: Of the call.

        Raises:
            RpcError: it is a task that nobody has asked for.
        """
        if result.get("resultType") == "task":
            if not wanted:
                text = f"Server {self._server.name!r} made a task that nobody asked for"
                raise RpcError(jsonrpc.INTERNAL_ERROR, text)
            return {**_meta_of(result), "task": legacy_task(result)}
        result = eras.legacy_result(result)
        if not wanted:
            return result
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        status = "failed" if result.get("isError") is True else "completed"
        task: Message = {
            "taskId": uuid.uuid4().hex, "status": status, "createdAt": now, "lastUpdatedAt": now,
            "ttl": None,
        }  # fmt: skip
        self._session.tasks.own(task["taskId"], self._server.name)
        _keep(self._kept, task["taskId"], (task, result), _MOST_KEPT)
        return {"task": task}

    def _own(self, method: str, id: str) -> Message:
        task, result = self._kept[id]
        if method == "tasks/cancel":
            raise RpcError(jsonrpc.INVALID_PARAMS, f"The task is {task['status']} already")
        return task if method == "tasks/get" else _with_related(result, id)

    async def _of_modern(self, exchange: Exchange, method: str, id: str) -> Message:
        if method == "tasks/cancel":
            await self._modern(exchange, "tasks/cancel", {"taskId": id})
        answered: set[str] = set()
        while True:
            task = await self._modern(exchange, "tasks/get", {"taskId": id})
            if method != "tasks/result":
                return legacy_task(task)
            status = task.get("status")
            if not isinstance(status, str) or status not in _STATES:
                text = f"Server {self._server.name!r} does not say how the task fares"
                raise RpcError(jsonrpc.INTERNAL_ERROR, text)
            if status in _ENDED:
                return _outcome(task, id)
            answers = await self._answers(exchange, id, task, answered)
            if answers:
                update = {"taskId": id, "inputResponses": answers}
                await self._modern(exchange, "tasks/update", update)
                continue
            pause: Any = task.get("pollIntervalMs")
            seconds = pause / 1000 if type(pause) in (int, float) else _POLL_SECONDS
            seconds = seconds if math.isfinite(seconds) else _POLL_SECONDS
            await asyncio.sleep(min(_MOST_POLL_SECONDS, max(_LEAST_POLL_SECONDS, seconds)))

    async def _modern(self, exchange: Exchange, method: str, params: Message) -> Message:
        sent = eras.enveloped(exchange.client, params, takes_tasks=True)
        return object_of(await self._server.ask(exchange, method, sent))

    async def _answers(
        self, exchange: Exchange, id: str, task: Message, answered: set[str]
    ) -> Message:
        """The client's answers to what is new of a task's questions."""
        answers: Message = {}
        for key, question in object_of(task.get("inputRequests")).items():
            if key in answered or len(answered) >= _MOST_TASKS:
                continue
            answered.add(key)
            asked = object_of(question)
            wanted = str(asked.get("method"))
            passed = _with_related(object_of(self._server.asking(wanted, asked.get("params"))), id)
            answers[key] = await exchange.ask(wanted, passed)
        return answers


def _outcome(task: Message, id: str) -> Message:
    """What an ended task of the extension's gives. Raises `RpcError`: an error."""
    if task["status"] == "completed":
        return _with_related(eras.legacy_result(object_of(task.get("result"))), id)
    if task["status"] == "failed":
        raise RpcError.of(task.get("error"))
    raise RpcError(jsonrpc.INTERNAL_ERROR, "The task was cancelled")


def _with_related(params: Message, id: str) -> Message:
    return {**params, "_meta": {**object_of(params.get("_meta")), RELATED: {"taskId": id}}}


def _related(params: Message | None) -> str:
    id = object_of(object_of((params or {}).get("_meta")).get(RELATED)).get("taskId")
    return id if isinstance(id, str) else ""


def _meta_of(result: Any) -> Message:
    return {"_meta": result["_meta"]} if is_object(result) and "_meta" in result else {}


def _keep(known: OrderedDict[str, Any], key: str, value: Any, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
