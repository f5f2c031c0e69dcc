"""What sandboxes cost that wait: memory of kernel and processes together, and the time to have them.

Run it as root, with nothing else running: python benchmarks/waiting.py [--count N]
Memory is the change while N sandboxes become ready after a few others, divided by N, in two columns.
*in use*: the kernel's objects (slabinfo(5), root's alone to read) and what it and processes have beside
them. *taken*: pages that somebody has taken for it (proc_meminfo(5)), for which what was to spare from
before is nobody's: as many as others have left behind, a few hundred sandboxes look cheaper than they are.
Both count stacks, page tables, anonymous and shared memory, per-CPU data and vmalloc. (MemAvailable, by
which it was measured before, also counts what was freed a moment ago: the same build gave 178 to 533 kB.)

Part of it is not the sandbox's but the machine's past. For each memory cgroup the kernel keeps a kilobyte
for every 64 file systems that were ever mounted at the same time since it was booted, and gives none of
that back (alloc_shrinker_info(), mm/shrinker.c). A sandbox has four file systems (proc, devpts, a tmpfs,
and its ipc namespace's mqueue): on a machine that has just been booted, 7 kB each for a hundred
sandboxes, 64 for a thousand, and as many for whatever cgroup comes after them.
Medians of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from purplebox.isolation import Engine
from purplebox.isolation.marks import Marks
from purplebox.isolation.pool import Ready, prepare
from purplebox.policies import load_policy

_SLABS = ("SUnreclaim", "SReclaimable")
_KINDS = ("PageTables", "AnonPages", "Shmem", "Percpu", "VmallocUsed")  # stacks are vmalloc's
_BEFORE = 20  # sandboxes, for what the first ones alone need
_SETTLE_SECONDS = 0.5  # the kernel frees some of what starting them took a moment later
_PAGE = resource.getpagesize()


def used_bytes() -> tuple[int, int]:
    """Of all kinds together: in use, and taken. The same where nobody may see objects."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    taken = sum(found[kind] for kind in (*_SLABS, *_KINDS))
    spare = 0
    with contextlib.suppress(PermissionError):
        for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
            _, active, _, size, _, pages, *rest = line.split()
            spare += int(rest[8]) * int(pages) * _PAGE - int(active) * int(size)
    return taken - spare, taken


async def measure(count: int, rounds: int) -> None:
    workspace = Path(tempfile.mkdtemp(prefix="purple-bench-"))
    workspace.chmod(0o755)
    sizes: list[tuple[float, float]] = []
    times: list[float] = []
    try:
        for _ in range(rounds):
            async with Engine(load_policy("base"), workspace) as engine:
                await engine.run(["true"])

                async def some(number: int, engine: Engine = engine) -> list[Ready]:
                    link = engine._link
                    return await asyncio.gather(
                        *(prepare(link, Marks(), "null") for _ in range(number))
                    )

                others = await some(_BEFORE)
                await asyncio.sleep(_SETTLE_SECONDS)
                before, began = used_bytes(), time.perf_counter()
                ready = await some(count)
                times.append(time.perf_counter() - began)
                await asyncio.sleep(_SETTLE_SECONDS)
                in_use, taken = (b - a for a, b in zip(before, used_bytes(), strict=True))
                sizes.append((in_use / count, taken / count))
                for sandbox in others + ready:
                    engine._discard(sandbox)
    finally:
        shutil.rmtree(workspace)
    each = " | ".join(f"{statistics.median(s) / 1000:.0f}" for s in zip(*sizes, strict=True))
    print("| sandboxes | kB each, in use | taken | seconds until ready |\n|---|---|---|---|")
    print(f"| {count} | {each} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # Seven descriptors for each.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(measure(arguments.count, arguments.rounds))
