"""Which limits a sandbox came to: judged once, from its policy and what was counted. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .usage import Counters, Limit, Usage

if TYPE_CHECKING:
    from ..policies import Policy

_NEARLY = 0.75  # of an I/O rate over the whole run: a command also starts, computes and ends
# What shells, Python and libc say to EAGAIN of fork(2) and clone(2).
_NO_FORK = (b"Cannot fork", b"Resource temporarily unavailable", b"can't start new thread")
_TAIL_BYTES = 4096


@dataclass(slots=True, kw_only=True)
class Ended:
    """How a sandbox ended.

    Attributes:
        wall_seconds: How long it ran.
        asked_seconds: The time limit that the call asked for; None when it asked for none.
        timed_out: Whether the time limit ended it.
        report: What the zygote said of it.
        counters: What its cgroup counted; None without one.
        usage: Both together.
        kept, written: Bytes of its output that were kept, and that it wrote.
        tail: The end of its standard error as kept.
    """

    wall_seconds: float
    asked_seconds: float | None
    timed_out: bool
    report: Mapping[str, Any]
    counters: Counters | None
    usage: Usage
    kept: int
    written: int
    tail: bytes

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel or the watcher killed it for its memory."""
        killed = self.counters is not None and self.counters.oom_kills > 0
        return killed or self.report.get("over") == "memory"

    @property
    def signal(self) -> int | None:
        """What ended the command by signal; None when it exited."""
        status = self.report.get("status")
        return status & 0x7F or None if isinstance(status, int) else None

    @property
    def uneventful(self) -> bool:
        """Whether there is nothing of all by which `reached` knows a limit, as with most."""
        counters, usage, report = self.counters, self.usage, self.report
        return not (
            self.timed_out or self.tail or self.written > self.kept or report.get("over")
            or usage.disk_bytes or usage.read_bytes or usage.written_bytes
            or not isinstance(status := report.get("status"), int) or status & 0x7F
            or (counters and (counters.oom_kills or counters.processes_refused or counters.throttled_seconds))
        )  # fmt: skip


def reached(policy: Policy, end: Ended) -> tuple[Limit, ...]:
    """The limits of `policy` that a sandbox came to, what ended it first."""
    if end.uneventful:
        return ()
    found = [*_time(policy, end), *_memory(policy, end), *_processes(policy, end)]
    found += [*_disk(policy, end), *_files(policy, end), *_rates(policy, end)]
    if end.written > end.kept:
        limit = policy.resources.output_bytes
        found.append(Limit(key="resources.output_limit", limit=limit, used=end.written, unit="bytes", effect="cut"))  # fmt: skip
    return tuple(sorted(found, key=lambda limit: limit.effect != "ended"))


def _time(policy: Policy, end: Ended) -> Iterator[Limit]:
    if not end.timed_out:
        return
    key, limit = "resources.timeout", policy.resources.wall_seconds
    if end.asked_seconds is not None and (limit is None or end.asked_seconds < limit):
        key, limit = "timeout_seconds", end.asked_seconds
    assert limit is not None
    yield Limit(key=key, limit=limit, used=round(end.wall_seconds, 3), unit="seconds", effect="ended")  # fmt: skip


def _memory(policy: Policy, end: Ended) -> Iterator[Limit]:
    limit = policy.resources.memory_bytes
    if limit is not None and end.out_of_memory:
        used = end.usage.memory_peak_bytes
        yield Limit(key="resources.memory_limit", limit=limit, used=used, unit="bytes", effect="ended")  # fmt: skip


def _processes(policy: Policy, end: Ended) -> Iterator[Limit]:
    limit = policy.resources.processes
    if limit is None:
        return
    over = end.report.get("over") == "processes"
    if over or (end.counters is not None and end.counters.processes_refused):
        yield Limit(
            key="resources.processes", limit=limit, used=end.usage.processes_peak,
            unit="processes", effect="ended" if over else "refused",
        )  # fmt: skip
    elif end.counters is None and any(words in end.tail for words in _NO_FORK):
        yield Limit(key="resources.processes", limit=limit, used=None, unit="processes", effect="refused")  # fmt: skip


def _disk(policy: Policy, end: Ended) -> Iterator[Limit]:
    limit, key = policy.filesystem.tmp_bytes, "filesystem.tmp_size"
    total = policy.resources.disk_bytes
    if total is not None:
        if end.signal == signal.SIGXFSZ:
            yield Limit(key="resources.disk", limit=total, used=total, unit="bytes", effect="ended")
            return
        if b"File too large" in end.tail or b"EFBIG" in end.tail:
            yield Limit(key="resources.disk", limit=total, used=None, unit="bytes", effect="refused")  # fmt: skip
            return
        if total <= limit:
            limit, key = total, "resources.disk"
    used = end.usage.disk_bytes
    if used is not None and used >= limit - limit % 4096:
        yield Limit(key=key, limit=limit, used=used, unit="bytes", effect="refused")
    elif b"No space left on device" in end.tail or b"ENOSPC" in end.tail:
        yield Limit(key=key, limit=limit, used=None, unit="bytes", effect="refused")


def _files(policy: Policy, end: Ended) -> Iterator[Limit]:
    limit = policy.resources.open_files
    if limit is not None and (b"Too many open files" in end.tail or b"EMFILE" in end.tail):
        yield Limit(key="resources.open_files", limit=limit, used=None, unit="files", effect="refused")  # fmt: skip


def _rates(policy: Policy, end: Ended) -> Iterator[Limit]:
    counters, wall = end.counters, max(end.wall_seconds, 1e-6)
    if counters is None:
        return
    cores = policy.resources.cpu_cores
    if cores is not None and counters.throttled_seconds:
        used = round((counters.cpu_seconds or 0.0) / wall, 3)
        yield Limit(key="resources.cpu_shares", limit=cores, used=used, unit="cores", effect="slowed")  # fmt: skip
    rate = policy.resources.io_bytes_per_second
    moved = max(counters.read_bytes or 0, counters.written_bytes or 0)
    if rate is not None and moved >= rate and moved / wall >= _NEARLY * rate:
        yield Limit(key="resources.io", limit=rate, used=round(moved / wall), unit="bytes/s", effect="slowed")  # fmt: skip


def tail(text: bytes | bytearray) -> bytes:
    """The last bytes of an output, in which a program says why it failed."""
    return bytes(text[-_TAIL_BYTES:])
