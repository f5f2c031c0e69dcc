"""Limits of a policy on calls, by client, session, server and tool: how many, how much, how long.

Theory of operation
    A limit counts in a window that slides over `every` seconds, kept as at most SLOTS sums, so that
    a counter's state does not grow with what it counts: what is counted stays counted for `every`
    and up to one slot more. Calls count when they begin. Bytes and time are known only afterwards,
    so once their sum has reached the limit no further call begins until enough has slid out. Each
    combination of what a limit is `per` has a counter; idle ones are forgotten, and beyond
    MOST_COUNTERS busy ones new ones are refused, for names of clients are the clients' to choose.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..policies.request import restricted_as
from .reasons import Reason
from .wire.jsonrpc import is_list, is_object

if TYPE_CHECKING:
    from ..policies import Decision
    from ..policies.judging import Limit
    from .call import Call, Ran, Refusal, Version

SLOTS = 60
MOST_COUNTERS = 4096
_BUSY_SECONDS = 1.0  # when to try again where another call has to end first; nobody knows when


@dataclass(kw_only=True)
class _Slot:
    number: int
    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Counter:
    """What one limit has counted for one combination.

    Attributes:
        every: Length of the window in seconds.
        running: Beginnings of the calls that run, by id.
    """

    every: float
    running: dict[str, float] = field(default_factory=dict[str, float])
    slots: deque[_Slot] = field(default_factory=deque[_Slot])

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        self._slide(now)
        return not self.running and not self.slots

    def begin(self, call_id: str, now: float) -> None:
        """Count a call that begins."""
        self._slot(now).calls += 1
        self.running[call_id] = now

    def end(self, call_id: str, size: int, now: float) -> None:
        """Count what it took."""
        begun = self.running.pop(call_id, now)
        slot = self._slot(now)
        slot.bytes += size
        slot.seconds += now - begun

    def wait(self, limit: Limit, now: float) -> tuple[str, float] | None:
        """Which member of `limit` is reached, and for how many seconds; None when none is."""
        self._slide(now)
        if limit.concurrent is not None and len(self.running) >= limit.concurrent:
            return "concurrent", _BUSY_SECONDS
        kinds = (("calls", limit.calls), ("bytes", limit.bytes), ("seconds", limit.seconds))
        for name, most in kinds:
            if most is None:
                continue
            amounts = [float(getattr(slot, name)) for slot in self.slots]
            total = sum(amounts)
            if name == "seconds":
                total += sum(now - begun for begun in self.running.values())
            if total < most:
                continue
            for slot, amount in zip(self.slots, amounts, strict=True):
                total -= amount
                if total < most:
                    return name, self._leaves(slot) - now
            return name, _BUSY_SECONDS
        return None

    def _slot(self, now: float) -> _Slot:
        number = math.floor(now / self.every * SLOTS)
        if not self.slots or self.slots[-1].number != number:
            self.slots.append(_Slot(number=number))
        return self.slots[-1]

    def _leaves(self, slot: _Slot) -> float:
        return (slot.number + 1) * self.every / SLOTS + self.every

    def _slide(self, now: float) -> None:
        while self.slots and self._leaves(self.slots[0]) <= now:
            self.slots.popleft()


class Limits:
    """The stage that holds a policy's `limits`.

    Args:
        clock: Seconds; must not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counters: dict[tuple[Limit, tuple[str, ...]], Counter] = {}
        self._running: dict[str, list[Counter]] = {}

    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        """As `Stage.before`."""
        now = self._clock()
        found: list[Counter] = []
        for index, limit in enumerate(version.policy.limits):
            if not _concerns(limit, call):
                continue
            counter = self._counter(limit, call, now)
            reached = ("per", _BUSY_SECONDS) if counter is None else counter.wait(limit, now)
            if reached is not None:
                return _refusal(version, index, limit, *reached)
            assert counter is not None
            found.append(counter)
        for counter in found:
            counter.begin(call.call_id, now)
        if found:
            self._running[call.call_id] = found
        return None

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        """As `Stage.after`."""
        found = self._running.pop(call.call_id, None)
        if found is not None:
            size = size_of(dict(call.arguments)) + size_of(ran.result)
            for counter in found:
                counter.end(call.call_id, size, self._clock())
        return ran

    def _counter(self, limit: Limit, call: Call, now: float) -> Counter | None:
        values = {
            "client": call.client, "session": call.session, "server": call.server,
            "tool": f"{call.server}\0{call.tool}",
        }  # fmt: skip
        key = limit, tuple(values[name] for name in limit.per)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= MOST_COUNTERS:
                for idle in [k for k, c in self._counters.items() if c.is_idle(now)]:
                    del self._counters[idle]
            if len(self._counters) >= MOST_COUNTERS:
                return None
            counter = self._counters[key] = Counter(every=limit.every)
        return counter


def size_of(value: Any) -> int:
    """About as many bytes as `value` has on the wire: a character is one, a number eight."""
    total = 0
    level: list[Any] = [value]
    while level:
        item = level.pop()
        if type(item) is str:
            total += len(item)
        elif is_object(item):
            total += sum(map(len, item))
            level += item.values()
        elif is_list(item):
            level += item
        else:
            total += 8
    return total


def _concerns(limit: Limit, call: Call) -> bool:
    names = (call.tool,) if call.server else restricted_as(call.tool, "")
    return (
        any(fnmatchcase(name, limit.tool) for name in names)
        and fnmatchcase(call.server, limit.server)
        and fnmatchcase(call.client, limit.client)
    )


def _refusal(version: Version, index: int, limit: Limit, name: str, wait: float) -> Refusal:
    from .call import Refusal

    seconds = max(1, math.ceil(wait))
    rule = f"limits[{index}].{'time' if name == 'seconds' else name}"
    per = " and ".join(limit.per) or "gateway"
    what = {
        "concurrent": f"{limit.concurrent} calls at once",
        "calls": f"{limit.calls} calls in {limit.every:g} s",
        "bytes": f"{limit.bytes} bytes in {limit.every:g} s",
        "seconds": f"{limit.seconds} s of running time in {limit.every:g} s",
        "per": f"{MOST_COUNTERS} busy combinations",
    }[name]
    return Refusal(
        reason=Reason.RATE_LIMITED, rule=rule, retry_seconds=seconds,
        text=(
            f"Not run: this {per} has reached {what} (rule {rule} of policy {version.policy.name}). "
            f"Try again in {seconds} s; until then do something else."
        ),
        person=f"Raise {rule} of policy {version.policy.name} if this much is meant to run.",
    )  # fmt: skip
