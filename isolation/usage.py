"""What a sandbox used, and which of its policy's limits it came to. Plain values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Effect = Literal["ended", "refused", "slowed", "cut"]


@dataclass(slots=True, kw_only=True)
class Counters:
    """What a cgroup has counted. None where this kernel or hierarchy has no such figure.

    `processes_refused` is how many forks met the limit, `throttled_seconds` how long processes
    waited for their share of CPU.
    """

    cpu_seconds: float | None = None
    throttled_seconds: float | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int = 0
    processes_peak: int | None = None
    processes_refused: int = 0
    read_bytes: int | None = None
    written_bytes: int | None = None

    @property
    def resettable(self) -> bool:
        """Whether nothing was counted that cgroup v1 lets nobody set back; one process is."""
        met = (self.oom_kills, self.processes_refused, self.throttled_seconds)
        return (
            not any((*met, self.read_bytes, self.written_bytes)) and (self.processes_peak or 0) <= 1
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one sandbox used, from its start to its end. None where nothing counts it.

    Attributes:
        counted_by: "cgroup": every process of it. "rusage": the command and the children that it
            waited for (getrusage(2)), peaks as looked at twenty times a second: at least that much.
        cpu_seconds: User and system time.
        cpu_throttled_seconds: Time for which processes waited because of `resources.cpu_shares`.
        memory_peak_bytes: The most at one moment, page cache and private file systems with it.
        processes_peak: The most processes and threads at one moment.
        read_bytes, written_bytes: From and to block devices; what the page cache answers is not
            counted as read, what is deleted before it is written back may be counted as written.
        disk_bytes: Held at the end by its private file systems (/tmp, HOME, …).
    """

    counted_by: Literal["cgroup", "rusage"]
    cpu_seconds: float | None = None
    cpu_throttled_seconds: float | None = None
    memory_peak_bytes: int | None = None
    processes_peak: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    disk_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name, for records."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the policy that a sandbox came to, and what happened there.

    Attributes:
        key: Of the policy, such as "resources.memory_limit"; "timeout_seconds" where the call
            asked for less than `resources.timeout`.
        limit: In `unit`.
        used: In `unit`; None where it is known only from what the command wrote ("No space left").
        unit: "bytes", "bytes/s", "seconds", "cores", "processes" or "files".
        effect: "ended", all of the sandbox was killed; "refused", the system call that asked for
            more failed; "slowed", it had to wait; "cut", the rest was thrown away.
    """

    key: str
    limit: float
    used: float | None
    unit: str
    effect: Effect

    def to_json(self) -> dict[str, Any]:
        """The fields by name, for records."""
        return asdict(self)

    def sentence(self) -> str:
        """What happened, for a person or a model: key, limit, use and effect."""
        used = "" if self.used is None else f", used {_amount(self.used, self.unit)}"
        what = {
            "ended": "ended: everything in the sandbox was killed",
            "refused": "more was refused",
            "slowed": "slowed down",
            "cut": "the rest was thrown away",
        }[self.effect]
        return f"{self.key} reached (limit {_amount(self.limit, self.unit)}{used}): {what}"


def merge(counters: Counters | None, report: Mapping[str, Any]) -> Usage:
    """One account of both: a cgroup's `counters` (None without one) and the zygote's `report`.

    The larger figure of I/O counts: a cgroup counts a write when it reaches the device, which for
    most commands is after their end; getrusage(2) counts it when the page is made dirty.
    """
    read, written = report.get("read_bytes"), report.get("written_bytes")
    if counters is None:
        return Usage(
            counted_by="rusage",
            cpu_seconds=report.get("cpu_seconds"),
            memory_peak_bytes=report.get("memory_peak_bytes"),
            processes_peak=report.get("processes_peak"),
            read_bytes=read,
            written_bytes=written,
            disk_bytes=report.get("disk_bytes"),
        )
    cpu, peak, processes = (
        counters.cpu_seconds, counters.memory_peak_bytes, counters.processes_peak
    )  # fmt: skip
    return Usage(
        counted_by="cgroup",
        cpu_seconds=report.get("cpu_seconds") if cpu is None else cpu,
        cpu_throttled_seconds=counters.throttled_seconds,
        memory_peak_bytes=report.get("memory_peak_bytes") if peak is None else peak,
        processes_peak=report.get("processes_peak") if processes is None else processes,
        read_bytes=_larger(counters.read_bytes, read),
        written_bytes=_larger(counters.written_bytes, written),
        disk_bytes=report.get("disk_bytes"),
    )


def _larger(a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return b if a is None else a
    return a if a > b else b


def _amount(value: float, unit: str) -> str:
    if not unit.startswith("bytes"):
        return f"{value:.3g} {unit}" if isinstance(value, float) else f"{value} {unit}"
    size, names = float(value), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(names) > 1:
        size, names = size / 1024, names[1:]
    return f"{size:.4g} {names[0]}{unit[5:]}"
