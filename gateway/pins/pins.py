"""One server beside its pins: what it says now, and what was accepted. Shared by its sessions."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .store import Definitions, PinStore, Server, new_server

if TYPE_CHECKING:
    from ...policies.judging import Pins as PinSettings

# Kind → the key of `pins.kinds` in a policy.
KINDS: Mapping[str, str] = {
    "launch": "launch", "instructions": "instructions", "tools": "tools", "prompts": "prompts",
    "resources": "resources", "templates": "resources",
}  # fmt: skip
_MOST_NAMES = 4096  # of a kind: what else there is is withheld
_MOST_BYTES = 64 << 10  # of a definition that is kept whole, for a diff


@dataclass(kw_only=True)
class Pins:
    """The pins of one server.

    Attributes:
        key: Names it in the file.
        name: Names it to people.
        settings: The policy's `pins`.
        store: The file.
        launch: What it is started as; reads files. None where there is no such program.
    """

    key: str
    name: str
    settings: PinSettings
    store: PinStore
    launch: Callable[[], dict[str, Any] | None]

    def holds(self, kind: str) -> bool:
        """Whether this kind is pinned."""
        return KINDS[kind] in self.settings.kinds

    def withheld(self, kind: str, found: Mapping[str, Any]) -> set[str]:
        """Names in `found` (in `form`) that are not as accepted. Raises `PinError`."""
        server = self.store.read().get(self.key)
        accepted = server.accepted.get(kind, {}) if server is not None else {}
        return {name for name, definition in found.items() if accepted.get(name) != definition}

    def is_new(self, kind: str) -> bool:
        """Whether nothing of this kind has been seen of this server yet. Raises `PinError`."""
        server = self.store.read().get(self.key)
        return server is None or kind not in server.accepted

    def sight(self, kind: str, found: Mapping[str, Any], *, first: bool, whole: bool) -> set[str]:
        """Compare, and write down what differs.

        Args:
            kind: Of definitions.
            found: What the server says now, in `form`.
            first: It belongs to the first sight of this kind: it is trusted, where the policy says
                so.
            whole: It is all that the server has of this kind.

        Returns:
            The names that are withheld.

        Raises:
            PinError: the file cannot be read or written.
        """
        trusted = first and self.settings.first_use == "accept"
        server = self.store.read().get(self.key)
        withheld = set[str]() if trusted else self.withheld(kind, found)
        news: Definitions = {name: found[name] for name in sorted(withheld)[:_MOST_NAMES]}
        known = server.accepted.get(kind) if server is not None else None
        if trusted:
            additions = {k: v for k, v in found.items() if known is None or known.get(k) != v}
            if additions or known is None:
                self._write(kind, additions, {}, whole=False)
            return self.withheld(kind, found)  # over the bound there are some
        pending = server.pending.get(kind, {}) if server is not None else {}
        stale = {name for name in pending if name not in news and (whole or name in found)}
        if known is None or stale or any(pending.get(name) != news[name] for name in news):
            self._write(kind, {}, news, whole=whole)
            for name in news:
                if pending.get(name) != news[name]:
                    self._say(kind, name, known is not None and name in known)
        return withheld

    def _write(
        self, kind: str, accepted: Definitions, pending: Definitions, *, whole: bool
    ) -> None:
        def change(servers: dict[str, Server]) -> None:
            server = servers.setdefault(self.key, new_server(self.name))
            kept = server.accepted.setdefault(kind, {})
            kept.update(accepted)
            for name in sorted(kept)[_MOST_NAMES:]:
                del kept[name]
            old = {} if whole else server.pending.get(kind, {})
            now = {n: d for n, d in {**old, **pending}.items() if kept.get(n) != d}
            server.pending[kind] = now

        self.store.update(change)

    def _say(self, kind: str, name: str, was_there: bool) -> None:
        what = f"{kind} {_printable(name)}" if name else kind
        change = "has changed since it was accepted" if was_there else "is new"
        print(
            f"purple: server {self.name}: {what} {change}, and is withheld; see: purple pins diff {self.name}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def form(definition: Any) -> Any:
    """What is kept and compared of a definition: all of it; of a huge one its digest."""
    text = json.dumps(definition, sort_keys=True)
    if len(text) <= _MOST_BYTES:
        return json.loads(text)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text[:200])
