"""Many servers behind one front: names with prefixes, lists merged, one server's trouble its own.

Order is the configuration's, then each server's. What collides, looks like another's, or cannot be
named within MCP's rules is left out and said on stderr.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from typing import Any

from ..config import skeleton
from . import jsonrpc
from .acts import Backend
from .builtin import INFO, cacheable, described, stamped
from .client import SUBSCRIPTION, Client
from .eras import LISTS as LIST_CHANGES
from .eras import heard
from .exchange import Exchange
from .jsonrpc import Message, RpcError, is_object, list_of, object_of
from .schemas import unsafe_schema
from .session import Session
from .tasks import EXTENSION

SEPARATOR = "__"
START_SECONDS = 20.0
LIST_SECONDS = 15.0
_MOST_PAGES = 100
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # 2025-11-25, "Tool names"
# Method, member of the result, what names an item, whether that name gets the prefix.
_LISTS = {
    "tools/list": ("tools", "name", True),
    "prompts/list": ("prompts", "name", True),
    "resources/list": ("resources", "uri", False),
    "resources/templates/list": ("resourceTemplates", "uriTemplate", False),
}


class Many:
    """Several backends as one server.

    Args:
        backends: In order; the one named "" has no prefix.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = {backend.name: backend for backend in backends}
        self._said: dict[str, Message] = {}
        self._owners: dict[str, str] = {}
        self._templates: dict[str, tuple[re.Pattern[str], str]] = {}
        self._listening: list[Exchange] = []

    async def handle(self, exchange: Exchange) -> Message:
        """As `session.Handler.handle`."""
        method, params = exchange.method, exchange.params or {}
        if method in ("initialize", "server/discover"):
            return await self._describe(exchange)
        if method in _LISTS:
            return await self._list(exchange, method)
        if method in ("tools/call", "prompts/get"):
            backend, own = self._named(params.get("name"))
            return await backend.request(exchange, method, {**params, "name": own})
        if method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            return await self._owner(params.get("uri")).request(exchange, method, params)
        if method.startswith("tasks/"):
            return await self._tasks(exchange, method, params)
        if method == "completion/complete":
            reference = object_of(params.get("ref"))
            if reference.get("type") == "ref/resource":
                backend = self._owner(reference.get("uri"))
                return await backend.request(exchange, method, params)
            backend, own = self._named(reference.get("name"))
            params = {**params, "ref": {**reference, "name": own}}
            return await backend.request(exchange, method, params)
        if method == "subscriptions/listen" and exchange.client.era == "modern":
            return await self._listen(exchange, params)
        if exchange.client.era == "legacy" and method == "ping":
            return {}
        if exchange.client.era == "legacy" and method == "logging/setLevel":
            logs = [n for n in self._said if "logging" in self._capabilities(n)]
            await self._each(exchange, logs, method, params)
            return {}
        raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """As `session.Handler.notified`."""
        for backend in self._backends.values():
            backend.notified(client, method, params)

    def replace(self, backends: Sequence[Backend]) -> None:
        """Have these from now on; what is known of one that stays is kept."""
        now = {backend.name: backend for backend in backends}
        for name, old in self._backends.items():
            if now.get(name) is not old:
                self._said.pop(name, None)
        self._owners = {uri: name for uri, name in self._owners.items() if name in now}
        self._templates = {t: found for t, found in self._templates.items() if found[1] in now}
        self._backends = now

    def tell(self, session: Session) -> None:
        """Tell the client that every list has changed."""
        for method in LIST_CHANGES:
            if session.client is not None and session.client.era == "legacy":
                session.send(jsonrpc.notification(method, None))
            for exchange in self._listening:
                filters = object_of((exchange.params or {}).get("notifications"))
                if heard(filters, method, None):
                    meta = {SUBSCRIPTION: exchange.id}
                    exchange.emit(jsonrpc.notification(method, {"_meta": meta}))

    async def aclose(self) -> None:
        """As `session.Handler.aclose`."""
        await asyncio.gather(*(b.aclose() for b in self._backends.values()), return_exceptions=True)

    async def _describe(self, exchange: Exchange) -> Message:
        await asyncio.gather(*(self._meet(exchange, name) for name in self._backends))
        capabilities: Message = {}
        notes: list[str] = []
        for name in self._backends:
            for key, value in self._capabilities(name).items():
                if key in ("tools", "prompts", "resources"):
                    merged = {**object_of(capabilities.get(key)), **object_of(value)}
                    capabilities[key] = {**merged, "listChanged": True}
                elif key in ("logging", "completions"):
                    capabilities.setdefault(key, {})
                elif key == "tasks" and exchange.client.era == "legacy":
                    capabilities[key] = _united(object_of(capabilities.get(key)), object_of(value))
                elif key == "extensions" and EXTENSION in object_of(value):
                    known = {EXTENSION: object_of(value)[EXTENSION]}
                    capabilities[key] = {**known, **object_of(capabilities.get(key))}
            said = self._said.get(name, {}).get("instructions")
            if isinstance(said, str) and said:
                notes.append(f"[{name}] {said}" if name else said)
        answer: Message = {"capabilities": capabilities}
        if notes:
            answer["instructions"] = "\n\n".join(notes)
        return described(exchange.client, INFO, answer)

    async def _meet(self, exchange: Exchange, name: str) -> None:
        """Have a server started and its description known; whatever is wrong with it is said."""
        try:
            async with asyncio.timeout(START_SECONDS):
                self._said[name] = await self._backends[name].describe(exchange.client, exchange)
        except (RpcError, TimeoutError) as error:
            self._said.pop(name, None)
            _warn(f"server {name} is left out: {error or 'it did not start in time'}")

    async def _list(self, exchange: Exchange, method: str) -> Message:
        member, key, prefixed = _LISTS[method]
        kind = "resources" if member == "resourceTemplates" else member
        missing = [name for name in self._backends if name not in self._said]
        await asyncio.gather(*(self._meet(exchange, name) for name in missing))
        names = [name for name in self._backends if kind in self._capabilities(name)]
        found = await asyncio.gather(*(self._items(exchange, n, method, member) for n in names))
        merged: list[Message] = []
        seen: dict[str, str] = {}
        for name, items in zip(names, found, strict=True):
            for item in items:
                own = item.get(key)
                if not isinstance(own, str):
                    _warn(f"server {name}: an entry of {method} has no {key}")
                    continue
                full = own
                if prefixed:
                    full = f"{name}{SEPARATOR}{own}" if name else own
                    item = {**item, key: full}
                    if not _NAME.fullmatch(full):
                        _warn(f"server {name}: {full!r} is no name by MCP's rules and is left out")
                        continue
                alike = skeleton(full) if prefixed else full
                if alike in seen:
                    _warn(f"server {name}: {full} is left out: it looks like {seen[alike]}")
                    continue
                if why := unsafe_schema(item):
                    _warn(f"server {name}: {full} is left out: {why}")
                    continue
                seen[alike] = full
                merged.append(item)
                if member == "resources":
                    self._owners[full] = name
                elif member == "resourceTemplates":
                    parts = re.split(r"\{[^}]*\}", full)
                    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
                    self._templates[full] = pattern, name
        return stamped(exchange.client, INFO, cacheable(exchange.client, {member: merged}))

    async def _items(
        self, exchange: Exchange, name: str, method: str, member: str
    ) -> list[Message]:
        items: list[Message] = []
        base = {k: v for k, v in (exchange.params or {}).items() if k != "cursor"}
        params = base
        try:
            async with asyncio.timeout(LIST_SECONDS):
                for _ in range(_MOST_PAGES):
                    page = object_of(await self._backends[name].request(exchange, method, params))
                    items += [item for item in list_of(page.get(member)) if is_object(item)]
                    if not isinstance(page.get("nextCursor"), str):
                        break
                    params = {**base, "cursor": page["nextCursor"]}
        except (RpcError, TimeoutError) as error:
            _warn(f"server {name}: {method} failed: {error or 'not answered in time'}")
        return items

    async def _tasks(self, exchange: Exchange, method: str, params: Message) -> Message:
        """A request about a task, of the server that has made it; all servers' in one list."""
        if method != "tasks/list":
            owner = exchange.session.tasks.owner(params.get("taskId"))
            if owner is None or owner not in self._backends:
                raise RpcError(jsonrpc.INVALID_PARAMS, "Unknown task")
            return await self._backends[owner].request(exchange, method, params)
        names = [
            n for n in self._said if "list" in object_of(self._capabilities(n).get("tasks"))
        ]  # fmt: skip
        if not names or exchange.client.era == "modern":
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)
        found = await asyncio.gather(*(self._items(exchange, n, method, "tasks") for n in names))
        return {"tasks": [task for tasks in found for task in tasks]}

    async def _listen(self, exchange: Exchange, params: Message) -> Message:
        wanted = object_of(params.get("notifications"))
        meta = {SUBSCRIPTION: exchange.id}
        acknowledged = {"notifications": wanted, "_meta": meta}
        exchange.emit(
            jsonrpc.notification("notifications/subscriptions/acknowledged", acknowledged)
        )
        exchange.quiet.add("notifications/subscriptions/acknowledged")  # the servers' own
        self._listening.append(exchange)
        try:
            await self._listen_to_each(exchange, params, wanted)
        finally:
            self._listening.remove(exchange)
        return {"_meta": meta}

    async def _listen_to_each(self, exchange: Exchange, params: Message, wanted: Message) -> None:
        async with asyncio.TaskGroup() as group:
            for name in self._said:
                if name:
                    uris = [u for u in list_of(wanted.get("resourceSubscriptions"))
                            if isinstance(u, str) and self._owners.get(u) == name]  # fmt: skip
                    tasks = [t for t in list_of(wanted.get("taskIds"))
                             if exchange.session.tasks.owner(t) == name]  # fmt: skip
                    apart = ("resourceSubscriptions", "taskIds")
                    share = {k: v for k, v in wanted.items() if k not in apart}
                    if uris:
                        share["resourceSubscriptions"] = uris
                    if tasks:
                        share["taskIds"] = tasks
                    work = self._each(
                        exchange, [name], "subscriptions/listen", {**params, "notifications": share}
                    )
                    group.create_task(work)
            await asyncio.Event().wait()

    async def _each(
        self, exchange: Exchange, names: Sequence[str], method: str, params: Message
    ) -> None:
        work = (self._backends[name].request(exchange, method, params) for name in names)
        for answer in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, RpcError):
                raise answer

    def _capabilities(self, name: str) -> Message:
        return object_of(self._said.get(name, {}).get("capabilities"))

    def _named(self, full: Any) -> tuple[Backend, str]:
        if isinstance(full, str):
            name, separator, own = full.partition(SEPARATOR)
            if separator and name and name in self._backends:
                return self._backends[name], own
            if not separator and "" in self._backends:
                return self._backends[""], full
        raise RpcError(jsonrpc.INVALID_PARAMS, f"Unknown name: {str(full)[:200]}")

    def _owner(self, uri: Any) -> Backend:
        """Whose resource it is: listed, of a template, or of the only server that has any.

        Nobody else is asked: what a URI holds is for its own server.
        """
        if isinstance(uri, str):
            if uri in self._owners:
                return self._backends[self._owners[uri]]
            for template, (pattern, name) in self._templates.items():
                if uri == template or pattern.fullmatch(uri):
                    return self._backends[name]
        having = [name for name in self._said if "resources" in self._capabilities(name)]
        if len(having) == 1:
            return self._backends[having[0]]
        raise RpcError(jsonrpc.INVALID_PARAMS, "Unknown resource; list the resources first")


def _united(one: Message, other: Message) -> Message:
    """What either offers."""
    both = {**other, **one}
    for key in one.keys() & other.keys():
        if is_object(one[key]) and is_object(other[key]):
            both[key] = _united(one[key], other[key])
    return both


def _warn(text: str) -> None:
    clean = "".join(c if c.isprintable() else "�" for c in text[:500])
    print(f"purple: {clean}", file=sys.stderr)
