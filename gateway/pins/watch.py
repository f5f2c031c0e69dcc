"""Pins in front of one session's server: what it said in this session, and what of that is withheld.

Theory of operation
    A listing passes through `listed`, which compares each item and leaves out what is withheld. A
    call needs the definition that the server has *now*: when nothing has been listed since the
    server started or said that its list has changed, the watch lists for itself first. What was seen
    is compared with the file at each call, so that what a person accepts is there at once; and as long
    as something is left out of the lists, `accepted` tells which of them have more to show.
    The first listing of a kind, over all of its pages, is the first sight that a policy may trust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..audit import spans
from ..call import Refusal
from ..reasons import Reason
from ..wire.jsonrpc import Message, is_list, is_object
from .pins import Pins, form
from .store import PinError

# Method → kind, member of the result, what names an item.
LISTS = {
    "tools/list": ("tools", "tools", "name"),
    "prompts/list": ("prompts", "prompts", "name"),
    "resources/list": ("resources", "resources", "uri"),
    "resources/templates/list": ("templates", "resourceTemplates", "uriTemplate"),
}
# What acts on one of them → kind, the method that lists it, what names it in the params.
_USES = {
    "tools/call": ("tools", "tools/list", "name"),
    "prompts/get": ("prompts", "prompts/list", "name"),
    "resources/read": ("resources", "resources/list", "uri"),
}
_CHANGED = {
    "notifications/tools/list_changed": ("tools",),
    "notifications/prompts/list_changed": ("prompts",),
    "notifications/resources/list_changed": ("resources", "templates"),
}
_MOST_PAGES = 50

List = Callable[[str, str | None], Awaitable[Message | None]]


class Withheld(Exception):
    """The server itself is withheld; the text is for the model and the person."""


class Watch:
    """What one session sees of a server.

    Args:
        pins: Of the server.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._seen: dict[str, dict[str, Any]] = {}
        self._whole: set[str] = set()
        self._first: set[str] = set()
        self._left_out: dict[str, set[str]] = {}  # kind → what the last listing did not show

    async def started(self) -> None:
        """Say that the server is about to be started. Raises `Withheld`: it must not be."""
        self._whole.clear()
        if not self._pins.settings.kinds:
            return
        try:
            self._pins.store.read()
            command = (
                await asyncio.to_thread(self._pins.launch) if self._pins.holds("launch") else None
            )
            if command is not None:
                found, first = {"": form(command)}, self._pins.is_new("launch")
                if self._pins.sight("launch", found, first=first, whole=True):
                    raise Withheld(_sentence(self._pins.name, "its launch command or program"))
        except PinError as error:
            raise Withheld(f"Server {self._pins.name!r} is withheld: {error}") from None

    def introduced(self, said: Message) -> Message:
        """A server's answer to the opening request, without instructions that are withheld."""
        if not self._pins.holds("instructions"):
            return said
        try:
            found = {"": form(said.get("instructions"))}
            first = self._pins.is_new("instructions")
            if not self._pins.sight("instructions", found, first=first, whole=True):
                return said
        except PinError:
            pass  # the listings say so
        return {key: value for key, value in said.items() if key != "instructions"}

    def changed(self, method: str) -> None:
        """Take a notification of the server's: a list that has changed is looked at anew."""
        self._whole.difference_update(_CHANGED.get(method, ()))

    def listed(self, method: str, cursor: str | None, result: Message) -> Message:
        """A page of a listing without what is withheld.

        Args:
            method: Which list.
            cursor: The page's, from the request; None is the first page.
            result: As the server gave it.

        Raises:
            Withheld: the file of pins cannot be used.
        """
        if method not in LISTS:
            return result
        kind, member, key = LISTS[method]
        if not self._pins.holds(kind) or not is_list(result.get(member)):
            return result
        items: list[Any] = result[member]
        named = [(str(item.get(key)), item) for item in items if is_object(item)]
        found = {name: form(_steady(kind, item)) for name, item in named}
        last = not isinstance(result.get("nextCursor"), str)
        try:
            if cursor is None:
                self._seen[kind] = {}
                self._first.discard(kind)
                if self._pins.is_new(kind):
                    self._first.add(kind)
            withheld = self._pins.sight(
                kind, found, first=kind in self._first, whole=cursor is None and last
            )
        except PinError as error:
            raise Withheld(f"Server {self._pins.name!r} is withheld: {error}") from None
        self._seen.setdefault(kind, {}).update(found)
        if last:
            self._whole.add(kind)
            self._first.discard(kind)
        # Of two with one name in a page, neither is what was compared.
        twice = {name for name in found if sum(name == other for other, _ in named) > 1}
        withheld |= twice
        self._left_out[kind] = withheld | (self._left_out.get(kind, set()) if cursor else set())
        for name in withheld:
            spans.event("purple.pin.withheld", {"purple.pin.kind": kind, "purple.pin.name": name})
        if not withheld:
            return result
        return {**result, member: [item for name, item in named if name not in withheld]}

    @property
    def withholds(self) -> bool:
        """Whether a listing has left something out since."""
        return any(self._left_out.values())

    def accepted(self) -> list[str]:
        """The `list_changed` notifications that are due: of what was left out, some would be shown now."""
        due: list[str] = []
        for method, kinds in _CHANGED.items():
            for kind in kinds:
                left_out, seen = self._left_out.get(kind, set()), self._seen.get(kind, {})
                try:
                    still = self._pins.withheld(kind, {n: seen[n] for n in left_out if n in seen})
                except PinError:
                    continue  # all of it is withheld
                if still < left_out & seen.keys():
                    self._left_out[kind] = still
                    due.append(method)
        return list(dict.fromkeys(due))

    async def problem(self, method: str, params: Message | None, ask: List) -> Refusal | None:
        """Why a call of one of the server's tools, prompts or resources is refused; None: it is not.

        Args:
            method, params: Of the request.
            ask: Lists for us: method and cursor to a page as the server gives it; None where it has
                no such list.
        """
        if method not in _USES:
            return None
        kind, lists, key = _USES[method]
        if not self._pins.holds(kind):
            return None
        name = str((params or {}).get(key))
        try:
            if kind not in self._whole:
                await self._look(lists, ask)
            seen = self._seen.get(kind, {})
            # What the server lists nowhere has misled nobody: whether there is one is the server's.
            if name not in seen or not self._pins.withheld(kind, {name: seen[name]}):
                return None
            what = f"its {kind.removesuffix('s')} {name!r}"
            text = _sentence(self._pins.name, what)
        except PinError as error:
            text = f"Server {self._pins.name!r} is withheld: {error}"
        except Withheld as error:
            text = str(error)
        person = f"See `purple pins diff {self._pins.name}`, then `purple pins accept {self._pins.name}`."
        return Refusal(reason=Reason.PIN_MISMATCH, rule=f"pins.{kind}", text=text, person=person)

    async def _look(self, method: str, ask: List) -> None:
        cursor: str | None = None
        past: set[str] = set()
        for _ in range(_MOST_PAGES):
            page = await ask(method, cursor)
            if page is None:
                break
            self.listed(method, cursor, page)
            following = page.get("nextCursor")
            if not isinstance(following, str) or following in past:
                break
            past.add(following)
            cursor = following
        kind = LISTS[method][0]
        self._whole.add(kind)
        self._first.discard(kind)


def _steady(kind: str, item: Message) -> Message:
    """A definition without what a resource's content changes in it."""
    if kind != "resources":
        return item
    kept = {k: v for k, v in item.items() if k != "size"}
    if is_object(kept.get("annotations")):
        notes: Message = kept["annotations"]
        kept["annotations"] = {k: v for k, v in notes.items() if k != "lastModified"}
    return kept


def _sentence(server: str, what: str) -> str:
    return (
        f"Withheld: server {server!r} has changed {what} since a person accepted it, or it is new. It is "
        f"not used until a person has looked at it (purple pins diff {server}) and accepted it (purple "
        f"pins accept {server}). Do something else, or ask the person to."
    )
